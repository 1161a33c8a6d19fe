"""hosts.toml in containerd's format, Docker's certs.d, and what stands for a registry without."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criagent.errors import InvalidRequestError
from criagent.image.hosts import ALL, Host, HostsDirectory, default_url


def written(base: Path, name: str, text: str) -> HostsDirectory:
    folder = base / name
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(text)
    return HostsDirectory([base])


@pytest.mark.parametrize(
    ("registry", "url"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("quay.io", "https://quay.io"),
        ("host:5000", "https://host:5000"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("127.9.9.9", "http://127.9.9.9"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("10.0.0.1", "https://10.0.0.1"),
        ("localhost.evil.test", "https://localhost.evil.test"),
    ],
)
def test_plain_http_is_for_loopback_alone(registry: str, url: str) -> None:
    assert default_url(registry) == url
    assert HostsDirectory([]).hosts(registry) == [Host(url=url)]


def test_mirrors_keep_their_order_and_the_registry_comes_last(tmp_path: Path) -> None:
    hosts = written(
        tmp_path,
        "quay.io",
        """
        server = "https://quay.example"
        ca = "server.pem"
        [host."https://b.test"]
          capabilities = ["pull"]
          skip_verify = true
          [host."https://b.test".header]
            x-one = "1"
            x-two = ["2"]
        [host."http://a.test/prefix/v2"]
          override_path = true
        [host."c.test/v2/"]
          client = [["c.pem", "c.key"], ["d.pem", ""]]
        """,
    ).hosts("quay.io")
    assert [host.url for host in hosts] == [
        "https://b.test",
        "http://a.test/prefix/v2",
        "https://c.test/v2",
        "https://quay.example",
    ]
    assert [host.mirror for host in hosts] == [True, True, True, False]
    assert [host.api for host in hosts] == ["/v2", "", "", "/v2"]
    assert hosts[0].capabilities == {"pull"}
    assert hosts[1].capabilities == ALL
    assert hosts[0].skip_verify
    assert hosts[0].header == (("x-one", "1"), ("x-two", "2"))
    folder = tmp_path / "quay.io"
    assert hosts[2].client == ((folder / "c.pem", folder / "c.key"), (folder / "d.pem", None))
    assert hosts[3].ca == (folder / "server.pem",)
    assert hosts[1].authority == "a.test"


@pytest.mark.parametrize("name", ["host:5000", "host_5000_", "_default"])
def test_names_of_directories(tmp_path: Path, name: str) -> None:
    hosts = written(tmp_path, name, '[host."http://m.test"]\n').hosts("host:5000")
    assert [host.url for host in hosts] == ["http://m.test", "https://host:5000"]


def test_the_nearest_directory_wins(tmp_path: Path) -> None:
    written(tmp_path / "two", "quay.io", 'server = "https://two.test"')
    written(tmp_path / "one", "_default", 'server = "https://one.test"')
    hosts = HostsDirectory([tmp_path / "none", tmp_path / "one", tmp_path / "two"])
    assert hosts.hosts("quay.io")[0].url == "https://one.test"


def test_changes_count_at_once(tmp_path: Path) -> None:
    hosts = written(tmp_path, "quay.io", 'server = "https://one.test"')
    assert hosts.hosts("quay.io")[0].url == "https://one.test"
    (tmp_path / "quay.io/hosts.toml").write_text('server = "https://two.test"')
    assert hosts.hosts("quay.io")[0].url == "https://two.test"


def test_certificates_in_dockers_places(tmp_path: Path) -> None:
    folder = tmp_path / "quay.io"
    folder.mkdir()
    for name in ("ca.crt", "client.cert", "client.key"):
        (folder / name).touch()
    (host,) = HostsDirectory([tmp_path]).hosts("quay.io")
    assert host.url == "https://quay.io"
    assert host.ca == (folder / "ca.crt",)
    assert host.client == ((folder / "client.cert", folder / "client.key"),)


@pytest.mark.parametrize(
    "text",
    [
        "server = ",
        "host = 1",
        'host = "x"',
        '[host]\n"http://x" = 1',
        '[host."http://x"]\ncapabilities = "pull"',
        '[host."http://x"]\ncapabilities = 1',
        '[host."http://x"]\ncapabilities = [["pull"]]',
        '[host."http://x"]\nheader = 1',
        '[host."http://[x"]',
        '[host."http://x"]\nclient = [[]]',
        b"\xff",
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "quay.io").mkdir()
    file = tmp_path / "quay.io/hosts.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidRequestError, match=r"hosts\.toml"):
        HostsDirectory([tmp_path]).hosts("quay.io")


def test_tls_settings_are_loaded_once(tmp_path: Path) -> None:
    host = Host(url="https://x", skip_verify=True)
    assert host.tls() is not None
    assert host.tls() is host.tls()
    assert Host(url="http://x").tls() is None
    with pytest.raises(FileNotFoundError):
        Host(url="https://x", ca=(tmp_path / "none.pem",)).tls()
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(ssl.SSLError):
        Host(url="https://x", ca=(tmp_path / "bad.pem",)).tls()


VALUE = st.sampled_from(['"x"', "1", "true", "[]", '["pull"]', "{}", '[["a"]]', "1.5", "[1]"])
KEY = st.sampled_from(["capabilities", "ca", "client", "skip_verify", "override_path", "header"])


@given(st.dictionaries(KEY, VALUE), st.dictionaries(KEY, VALUE))
def test_any_values_give_hosts_or_the_error(
    tmp_path_factory: pytest.TempPathFactory, top: dict[str, str], inner: dict[str, str]
) -> None:
    lines = [f"{key} = {value}" for key, value in top.items()]
    lines += ['[host."https://m.test"]', *(f"{key} = {value}" for key, value in inner.items())]
    hosts = written(tmp_path_factory.mktemp("hosts"), "quay.io", "\n".join(lines))
    with contextlib.suppress(InvalidRequestError):
        assert [host.mirror for host in hosts.hosts("quay.io")] == [True, False]
