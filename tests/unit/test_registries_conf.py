# SPDX-License-Identifier: Apache-2.0
"""registries.conf: what it says of an image's hosts and of short names (man 5
containers-registries.conf).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criagent.base.errors import InvalidRequestError, NotFoundError, RegistryDeniedError
from criagent.config import registries_conf
from criagent.image.documents.reference import Reference, parse_reference
from criagent.image.hosts.auth_file import AuthFile
from criagent.image.hosts.hosts_toml import Host, HostsDirectory
from criagent.image.hosts.registries import RegistriesFile, RegistryHosts
from criagent.image.registry import Progress
from tests.support.pulling import Node, Registry

DIGEST = "sha256:" + "a" * 64


def hosts_of(folder: Path, text: str, **drop_ins: str) -> RegistryHosts:
    (folder / "registries.conf").write_text(text)
    (folder / "registries.conf.d").mkdir(exist_ok=True)
    for name, content in drop_ins.items():
        (folder / "registries.conf.d" / f"{name}.conf").write_text(content)
    directory = HostsDirectory([folder / "certs.d"])
    return RegistryHosts(directory, RegistriesFile(folder / "registries.conf"))


def places(hosts: RegistryHosts, name: str) -> list[str]:
    """URLs with the repository, as they are asked."""
    return [f"{host.url}/{host.repository}" for host in hosts.of(parse_reference(name))]


CONF = """
[[registry]]
prefix = "example.com/foo"
location = "internal.example.net/bar"
[[registry.mirror]]
location = "mirror-0.local/mirror-for-foo"
[[registry.mirror]]
location = "mirror-1.local:5000/mirrors/foo"
insecure = true
[[registry]]
location = "example.com"
[[registry]]
prefix = "*.corp.example"
location = "cache.lan/corp"
[[registry]]
prefix = "example.com/foo/bad"
blocked = true
[[registry]]
prefix = "docker.io"
[[registry.mirror]]
location = "hub.lan"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "tags.lan/hub"
pull-from-mirror = "tag-only"
[[registry]]
prefix = "pinned.example"
mirror-by-digest-only = true
[[registry.mirror]]
location = "pins.lan"
"""


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "example.com/foo/image:latest",
            [
                "https://mirror-0.local/mirror-for-foo/image",
                "https://mirror-1.local:5000/mirrors/foo/image",
                "http://mirror-1.local:5000/mirrors/foo/image",
                "https://internal.example.net/bar/image",
            ],
        ),
        ("example.com/food/image", ["https://example.com/food/image"]),
        ("a.b.corp.example/team/app:1", ["https://cache.lan/corp/team/app"]),
        ("a.corp.example:5000/app", ["https://cache.lan/corp/app"]),
        (
            "busybox",
            [
                "https://tags.lan/hub/library/busybox",
                "https://registry-1.docker.io/library/busybox",
            ],
        ),
        (
            f"docker.io/me/x@{DIGEST}",
            ["https://hub.lan/me/x", "https://registry-1.docker.io/me/x"],
        ),
        ("pinned.example/x:1", ["https://pinned.example/x"]),
        (f"pinned.example/x@{DIGEST}", ["https://pins.lan/x", "https://pinned.example/x"]),
    ],
)
def test_mirrors_and_locations(tmp_path: Path, name: str, wanted: list[str]) -> None:
    assert places(hosts_of(tmp_path, CONF), name) == wanted


def test_an_image_without_a_table_is_pulled_by_hosts_toml(tmp_path: Path) -> None:
    for registry in ("quay.io", "example.com"):
        folder = tmp_path / "certs.d" / registry
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text('[host."https://m.test"]\n')
    hosts = hosts_of(tmp_path, CONF)
    found = hosts.of(parse_reference("quay.io/a/b:1"))
    assert [host.url for host in found] == ["https://m.test", "https://quay.io"]
    assert places(hosts, "example.com/food/image") == ["https://example.com/food/image"]
    (other,) = hosts.of(parse_reference("corp.example/a:1"))  # the wildcard is for what is below
    assert other == Host(url="https://corp.example")


def test_plain_http_is_the_last_resort_and_tls_files_count(tmp_path: Path) -> None:
    for name in ("reg.lan:5000", "mirror.lan"):
        (tmp_path / "certs.d" / name).mkdir(parents=True)
        (tmp_path / "certs.d" / name / "ca.crt").write_text("")
    hosts = hosts_of(
        tmp_path,
        '[[registry]]\nlocation = "reg.lan:5000"\ninsecure = true\n'
        '[[registry.mirror]]\nlocation = "mirror.lan"\n',
    )
    mirror, secure, plain = hosts.of(parse_reference("reg.lan:5000/a/b:1"))
    assert (mirror.mirror, mirror.skip_verify, mirror.fallback_for) == (True, False, "")
    assert mirror.ca == (tmp_path / "certs.d/mirror.lan/ca.crt",)
    assert (secure.url, secure.mirror, secure.skip_verify) == ("https://reg.lan:5000", False, True)
    assert secure.ca == (tmp_path / "certs.d/reg.lan:5000/ca.crt",)
    assert (plain.url, plain.fallback_for) == ("http://reg.lan:5000", secure.url)
    assert not any(one.stands_for("reg.lan:5000") for one in (mirror, secure, plain))


@pytest.mark.parametrize("name", ["example.com/foo/bad:1", "example.com/foo/bad/er@" + DIGEST])
def test_a_blocked_image(tmp_path: Path, name: str) -> None:
    with pytest.raises(RegistryDeniedError, match=r"example\.com/foo/bad is blocked by .*\.conf"):
        hosts_of(tmp_path, CONF).of(parse_reference(name))


def test_drop_ins_win_in_name_order_and_changes_count(tmp_path: Path) -> None:
    hosts = hosts_of(
        tmp_path,
        'unqualified-search-registries = ["one.test"]\ncredential-helpers = ["one"]\n'
        '[[registry]]\nlocation = "a.test"\n'
        '[aliases]\n"app" = "a.test/app"\n"gone" = "a.test/gone"\n',
        a10='[[registry]]\nprefix = "a.test"\nlocation = "b.test"\n[aliases]\n"gone" = ""\n',
        b20='unqualified-search-registries = ["two.test"]\ncredential-helpers = ["two"]\n'
        '[[registry]]\nprefix = "a.test"\n'
        'location = "c.test/x"\n',
    )
    assert places(hosts, "a.test/app:1") == ["https://c.test/x/app"]
    assert [str(one) for one in hosts.references("app:2")] == ["a.test/app:2"]
    assert [str(one) for one in hosts.references("gone")] == ["two.test/gone:latest"]
    assert [one.store for one in hosts.credentials(AuthFile("node"))] == ["two"]
    (tmp_path / "registries.conf.d" / "b20.conf").unlink()
    assert places(hosts, "a.test/app:1") == ["https://b.test/app"]
    (tmp_path / "registries.conf.d" / "a10.conf").write_text("[[registry]\n")
    with pytest.raises(InvalidRequestError, match=r"registries_conf: .*a10\.conf: "):
        hosts.of(parse_reference("a.test/app:1"))
    (tmp_path / "registries.conf.d" / "a10.conf").write_text("")
    assert places(hosts, "a.test/app:1") == ["https://a.test/app"]


MIRROR = '[[registry]]\nlocation = "a.test"\n[[registry.mirror]]\nlocation = "b.test"\n'
TWO = 'unqualified-search-registries = ["one.test:5000", "docker.io"]\n'


@pytest.mark.parametrize(
    ("text", "name", "wanted"),
    [
        (TWO, "app:1", ["one.test:5000/app:1", "docker.io/library/app:1"]),
        (TWO, "team/app", ["one.test:5000/team/app:latest", "docker.io/team/app:latest"]),
        (TWO, f"app@{DIGEST}", [f"one.test:5000/app@{DIGEST}", f"docker.io/library/app@{DIGEST}"]),
        (TWO + 'short-name-mode = "enforcing"\n', "quay.io/app", ["quay.io/app:latest"]),
        (TWO + 'short-name-mode = "enforcing"\n', "localhost/app", ["localhost/app:latest"]),
        (
            TWO + 'short-name-mode = "enforcing"\n[aliases]\n"team/app" = "r.test/x"\n',
            "team/app:3",
            ["r.test/x:3"],
        ),
        (
            'unqualified-search-registries = ["one.test"]\nshort-name-mode = "enforcing"\n',
            "app",
            ["one.test/app:latest"],
        ),
        ("[registries.search]\nregistries = ['one.test']\n", "app", ["one.test/app:latest"]),
    ],
)
def test_short_names(tmp_path: Path, text: str, name: str, wanted: list[str]) -> None:
    assert [str(one) for one in hosts_of(tmp_path, text).references(name)] == wanted


def test_a_short_name_that_is_not_resolved_says_what_to_do(tmp_path: Path) -> None:
    hosts = hosts_of(tmp_path, TWO + 'short-name-mode = "enforcing"\n')
    with pytest.raises(InvalidRequestError, match="ambiguous: short-name-mode is enforcing") as one:
        hosts.references("app:1")
    assert "one.test:5000, docker.io; write the whole name, or add an alias" in str(one.value)
    with pytest.raises(InvalidRequestError, match=r"such as docker\.io/library/app"):
        hosts_of(tmp_path, "").references("app")
    assert RegistryHosts(HostsDirectory([])).references("app") == [
        parse_reference("docker.io/library/app:latest")
    ]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('registry = "x"', "registry: expected a list of tables"),
        ('credential-helpers = ["/bin/sh"]', "credential-helpers: '/bin/sh' is not the NAME"),
        ("[[registry]]\ninsecure = true", "prefix or location"),
        ('[[registry]]\nlocation = "https://a.test"', "location: expected HOST"),
        ('[[registry]]\nlocation = "a.test:x/y"', "location: expected HOST"),
        ('[[registry]]\nprefix = "a.*.test"', "wildcard"),
        ('[[registry]]\nlocation = "a.test"\nblocked = "yes"', "blocked: expected true or false"),
        ('[[registry]]\nlocation = "a.test"\n[[registry.mirror]]', "mirror: its location"),
        (MIRROR + 'pull-from-mirror = "never"', "pull-from-mirror: must be one of all, "),
        (
            '[[registry]]\nlocation = "a.test"\n[[registry]]\nlocation = "a.test"\nblocked = true',
            "'a.test': is there twice",
        ),
        ('short-name-mode = "strict"', "short-name-mode: must be one of enforcing"),
        ('unqualified-search-registries = "docker.io"', "expected a list of strings"),
        ('unqualified-search-registries = ["hub"]', "'hub' is not a registry"),
        ('[aliases]\n"app" = "team/app"', "'team/app' must be a whole name"),
        ('[aliases]\n"app" = "r.test/app:1"', "must be a whole name"),
        ('[aliases]\n"App" = "r.test/app"', "aliases: 'App'"),
        ('[registries.block]\nregistries = ["a.test"]\n' + MIRROR, "of version 2"),
        ("a = [", "Invalid value"),
    ],
)
def test_a_wrong_file_names_itself_and_the_key(tmp_path: Path, text: str, key: str) -> None:
    hosts = hosts_of(tmp_path, text)
    with pytest.raises(InvalidRequestError) as caught:
        hosts.references("app")
    assert str(caught.value).startswith(f"registry.registries_conf: {tmp_path}/registries.conf: ")
    assert key in str(caught.value)


def test_a_missing_file_is_an_error_but_drop_ins_alone_are_not(tmp_path: Path) -> None:
    hosts = hosts_of(tmp_path, "", a='[aliases]\n"app" = "r.test/app"\n')
    (tmp_path / "registries.conf").unlink()
    assert [one.name for one in hosts.references("app")] == ["r.test/app"]
    (tmp_path / "registries.conf.d" / "a.conf").unlink()
    with pytest.raises(InvalidRequestError, match="there is neither"):
        hosts.references("app")


def test_version_1(tmp_path: Path) -> None:
    hosts = hosts_of(
        tmp_path,
        "[registries.insecure]\nregistries = ['a.test']\n"
        "[registries.block]\nregistries = ['b.test']\n",
    )
    assert places(hosts, "a.test/x") == ["https://a.test/x", "http://a.test/x"]
    with pytest.raises(RegistryDeniedError):
        hosts.of(parse_reference("b.test/x"))


@dataclass(frozen=True)
class Pair(RegistryHosts):
    """A host, and one that is asked in its place."""

    urls: tuple[str, str] = ("", "")

    def of(self, reference: Reference) -> list[Host]:
        first, second = self.urls
        return [Host(url=first), Host(url=second, fallback_for=first)]


async def test_a_fallback_is_asked_only_where_nothing_answered(tmp_path: Path) -> None:
    first, second = Registry(), Registry()
    await first.start()
    await second.start()
    second.put(b"{}", "application/json", "1")
    node = Node(tmp_path, hosts=Pair(HostsDirectory([]), urls=(first.url, second.url)))

    async def manifest() -> bytes:
        session = node.client.session(parse_reference("r.test/a/b:1"), None)
        return (await node.client.manifest(session, "1", Progress())).content

    with pytest.raises(NotFoundError):
        await manifest()
    assert second.asked == []
    await first.stop()
    assert await manifest() == b"{}"
    assert await manifest() == b"{}"  # the first one is known to be silent by now
    await second.stop()
    await node.close()


_VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda one: (
        st.lists(one, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["prefix", "location", "insecure", "mirror", "search", "registries", "block", "a"]
            ),
            one,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "registry",
                "registries",
                "aliases",
                "short-name-mode",
                "unqualified-search-registries",
            ]
        ),
        _VALUES,
    )
)
def test_any_document_is_read_or_refused(document: dict[str, Any]) -> None:
    with contextlib.suppress(ValueError):
        registries_conf.parsed(document)
