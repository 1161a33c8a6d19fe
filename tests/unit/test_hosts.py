# SPDX-License-Identifier: Apache-2.0
"""hosts.toml in containerd's format, Docker's certs.d, and what stands for a registry without."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criagent.base.errors import InvalidRequestError
from criagent.image.hosts.hosts_toml import ALL, Host, HostsDirectory, default_url


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
        '[host."http://x"]\nclient = [["a"]]',
        '[host."http://x"]\nskip_verify = "false"',
        '[host."http://x"]\noverride_path = 1',
        '[host."http://x"]\ncapabilities = ["pulls"]',
        '[host."http://x"]\ndial_timeout = 5',
        '[host."http://x"]\ndial_timeout = "5"',
        '[host."http://x"]\ndial_timeout = "-1s"',
        '[host."http://x"]\ndial_timeout = "1s 2s"',
        '[host."http://x"]\ndial_timeout = ""',
        '[host."http://x".header]\nx-a = "b\\r\\nHost: y"',
        '[host."http://x".header]\n"x a" = "b"',
        '[host."ftp://x"]',
        '[host."http://"]',
        '[host."http://x:99999"]',
        b"\xff",
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "quay.io").mkdir()
    file = tmp_path / "quay.io/hosts.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidRequestError, match=r"hosts\.toml"):
        HostsDirectory([tmp_path]).hosts("quay.io")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1.0), ("500ms", 0.5), ("1m30s", 90.0), ("1.5h", 5400.0), (".5s", 0.5), ("0", 0.0)],
)
def test_dial_timeouts_are_durations_of_go(tmp_path: Path, text: str, seconds: float) -> None:
    hosts = written(
        tmp_path, "quay.io", f'dial_timeout = "2s"\n[host."https://m"]\ndial_timeout = "{text}"\n'
    ).hosts("quay.io")
    assert [host.dial_timeout_s for host in hosts] == [seconds, 2.0]
    assert HostsDirectory([]).hosts("quay.io")[0].dial_timeout_s == 30.0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ALL),
        ("capabilities = []", ALL),
        ('capabilities = ["Pull", "RESOLVE"]', {"pull", "resolve"}),
        ('capabilities = ["pull", "referrers"]', {"pull", "referrers"}),
    ],
)
def test_capabilities(tmp_path: Path, text: str, wanted: set[str]) -> None:
    hosts = written(tmp_path, "quay.io", f'[host."https://m"]\n{text}\n').hosts("quay.io")
    assert hosts[0].capabilities == wanted


@pytest.mark.parametrize(
    ("key", "url", "api"),
    [
        ("https://m.test", "https://m.test", "/v2"),
        ("https://m.test/", "https://m.test", "/v2"),
        ("https://m.test/v2", "https://m.test/v2", ""),
        ("https://m.test/one//two/../three/", "https://m.test/one/three", "/v2"),
        ("https://user:secret@m.test/v2/", "https://m.test/v2", ""),
        ("m.test:5000", "https://m.test:5000", "/v2"),
        ("http://[::1]:5000", "http://[::1]:5000", "/v2"),
    ],
)
def test_urls_of_hosts(tmp_path: Path, key: str, url: str, api: str) -> None:
    host = written(tmp_path, "quay.io", f'[host."{key}"]\n').hosts("quay.io")[0]
    assert (host.url, host.api) == (url, api)


@pytest.mark.parametrize(
    ("url", "registry", "stands"),
    [
        ("https://registry-1.docker.io", "docker.io", False),
        ("https://mirror.test", "docker.io", True),
        ("https://quay.io", "quay.io", False),
        ("https://quay.io:443", "quay.io", False),
        ("https://quay.io:5000", "quay.io", True),
    ],
)
def test_who_has_to_be_told_the_registrys_name(url: str, registry: str, *, stands: bool) -> None:
    assert Host(url=url).stands_for(registry) == stands


def test_a_directory_of_the_registry_hides_the_default(tmp_path: Path) -> None:
    """As with containerd, also when it holds certificates alone, or nothing."""
    written(tmp_path, "_default", '[host."https://mirror.test"]')
    hosts = HostsDirectory([tmp_path])
    assert hosts.hosts("quay.io")[0].url == "https://mirror.test"
    folder = tmp_path / "quay.io"
    folder.mkdir()
    assert [host.url for host in hosts.hosts("quay.io")] == ["https://quay.io"]
    (folder / "client.cert").touch()
    (folder / "hosts.toml").touch()
    (host,) = hosts.hosts("quay.io")
    assert host.client == ((folder / "client.cert", None),)


def test_values_of_one_field_are_joined(tmp_path: Path) -> None:
    text = '[host."https://m".header]\nx-a = ["one", "two"]\nx-b = "three"\n'
    host = written(tmp_path, "quay.io", text).hosts("quay.io")[0]
    assert host.header == (("x-a", "one, two"), ("x-b", "three"))


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
