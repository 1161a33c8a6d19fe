# SPDX-License-Identifier: Apache-2.0
"""Credentials: for the right server, from the call or docker's file, and never shown."""

from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criagent.base.errors import InvalidRequestError
from criagent.image.hosts import auth_file
from criagent.image.hosts.auth_file import AuthFile, parsed
from criagent.image.hosts.credentials import Credentials, Helper, RegistryAuth, credentials_for

NOWHERE: tuple[AuthFile, ...] = ()


def first(*arguments: Any, mirror: bool = False) -> Credentials | Helper | None:
    """The source that counts."""
    return next(iter(credentials_for(*arguments, mirror=mirror)), None)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def docker(folder: Path, document: object) -> tuple[AuthFile, ...]:
    path = folder / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return (auth_file.read(path),)


@pytest.mark.parametrize(
    ("server", "registry", "used"),
    [
        ("", "example.test", True),
        ("example.test", "example.test", True),
        ("https://example.test/v1/", "example.test", True),
        ("EXAMPLE.test", "example.test", True),
        ("example.test", "Example.Test", True),
        ("https://user@example.test", "example.test", True),
        ("https://index.docker.io/v1/", "docker.io", True),
        ("registry-1.docker.io", "docker.io", True),
        ("example.test:5000", "example.test:5000", True),
        ("example.test:5000", "example.test", False),
        ("example.test:443", "example.test", True),
        ("https://example.test", "example.test:443", True),
        ("example.test", "example.test.evil", False),
        ("evil.test", "example.test", False),
        ("https://[broken", "example.test", False),
    ],
)
def test_the_calls_credentials_are_for_one_server(server: str, registry: str, used: bool) -> None:
    auth = RegistryAuth(username="u", password="p", server_address=server)
    found = first(registry, auth, NOWHERE)
    assert (found is not None) == used


def test_a_mirror_gets_only_what_names_it(tmp_path: Path) -> None:
    nameless = RegistryAuth(username="u", password="p")
    named = RegistryAuth(username="u", password="p", server_address="mirror.test")
    path = docker(tmp_path, {"auths": {"mirror.test": {"auth": encoded("m:q")}}})
    assert first("mirror.test", nameless, NOWHERE, mirror=True) is None
    assert first("mirror.test", None, NOWHERE, mirror=True) is None
    assert first("mirror.test", named, NOWHERE, mirror=True) is not None
    assert first("mirror.test", nameless, path, mirror=True) == Credentials(
        username="m", password="q"
    )


@pytest.mark.parametrize("text", ["u:p", "u:p:with:colons", "ü:é", ":", "u:"])
def test_auth_is_base64_of_user_and_password(text: str) -> None:
    found = first("r", RegistryAuth(auth=encoded(text)), NOWHERE)
    assert isinstance(found, Credentials)
    assert found.basic == "Basic " + encoded(text)


@pytest.mark.parametrize(
    "auth", ["!", "é", encoded("no colon"), "YQ", base64.b64encode(b"\xff:").decode()]
)
def test_any_other_auth_is_refused(auth: str) -> None:
    with pytest.raises(InvalidRequestError):
        first("r", RegistryAuth(auth=auth), NOWHERE)


def test_tokens_pass_through() -> None:
    found = first("r", RegistryAuth(identity_token="i", registry_token="t"), NOWHERE)
    assert found == Credentials(identity_token="i", registry_token="t")


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"auth": encoded("u:p")}, Credentials(username="u", password="p")),
        ({"auth": encoded("u:p\0\0")}, Credentials(username="u", password="p")),
        ({"identitytoken": "t"}, Credentials(identity_token="t")),
        ({}, None),
    ],
)
def test_dockers_file(tmp_path: Path, entry: Any, wanted: Credentials | None) -> None:
    path = docker(tmp_path, {"auths": {"https://[broken": {}, "https://r.test/v2/": entry}})
    assert first("r.test", None, path) == wanted
    assert first("other.test", None, path) is None


@pytest.mark.parametrize("text", ['{"auths": null}', "{}", '{"credHelpers": null}'])
def test_a_file_without_entries_has_none(tmp_path: Path, text: str) -> None:
    assert first("r.test", None, docker(tmp_path, text)) is None
    assert auth_file.read(tmp_path / "missing") == AuthFile(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{s3cret",
        "[]",
        "null",
        '{"auths": ["s3cret"]}',
        '{"auths": {"r.test": "s3cret"}}',
        '{"credHelpers": {"r.test": "../s3cret"}}',
        '{"credsStore": 7}',
        "[" * 100_000,
        " " * ((1 << 20) + 1),
    ],
    ids=range(10),
)
def test_a_broken_file_is_named_without_its_content(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        docker(tmp_path, text)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "s3cret" not in str(caught.value)
    later = [auth_file.read_later(tmp_path / "config.json")]
    own = RegistryAuth(username="u", password="p")
    assert first("r.test/a", own, later) == Credentials(username="u", password="p")
    with pytest.raises(InvalidRequestError):
        first("r.test/a", None, later)


def test_an_entry_that_is_no_base64_names_its_key_alone(tmp_path: Path) -> None:
    files = docker(tmp_path, {"auths": {"r.test": {"auth": "s3cret!"}}})
    with pytest.raises(InvalidRequestError, match=r"'r\.test': auth is not valid base64") as caught:
        first("r.test/a", None, files)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("quay.io/team/app", "app"),
        ("quay.io/team/other", "team"),
        ("quay.io/team", "team"),
        ("quay.io/teams/app", "all"),
        ("quay.io", "all"),
        ("docker.io/library/busybox", "hub"),
        ("docker.io/mine/app", "mine"),
        ("other.test/x", None),
        ("only.test/team/app", "team"),
        ("only.test/else", None),
    ],
)
def test_the_key_that_names_most_of_the_image_wins(name: str, user: str | None) -> None:
    keys = {
        "quay.io": "all",
        "quay.io/team/app": "app",
        "quay.io/team": "team",
        "https://index.docker.io/v1/": "hub",
        "docker.io/mine": "mine",
        "only.test/team": "team",
    }
    auths = {key: {"auth": encoded(f"{value}:p")} for key, value in keys.items()}
    found = first(name, None, [parsed(json.dumps({"auths": auths}).encode(), "f")])
    assert getattr(found, "username", None) == user


def test_the_order_of_files_and_helpers() -> None:
    namespace = parsed(json.dumps({"auths": {"a.test": {"auth": encoded("n:p")}}}).encode(), "n")
    node = parsed(
        json.dumps(
            {
                "auths": {
                    "a.test": {"auth": encoded("node:p")},
                    "b.test": {"auth": encoded("b:p")},
                    "c.test": {"auth": encoded("c:p")},
                },
                "credHelpers": {"https://c.test/v2/": "ecr"},
                "credsStore": "pass",
            }
        ).encode(),
        "/etc/auth.json",
    )
    files = [namespace, node]
    assert first("a.test/x", None, files) == Credentials(username="n", password="p")
    assert first("b.test/x", None, files) == Credentials(username="b", password="p")
    assert first("c.test/x", None, files) == Helper(
        name="ecr", server="c.test", file="/etc/auth.json"
    )
    hub = first("docker.io/library/x", None, files)
    assert hub == Helper(name="pass", server="https://index.docker.io/v1/", file="/etc/auth.json")
    auth = RegistryAuth(username="call", password="p")
    assert first("c.test/x", auth, files) == Credentials(username="call", password="p")


def test_secrets_do_not_show() -> None:
    auth = RegistryAuth(
        username="hidden", password="hidden", auth="hidden", identity_token="hidden"
    )
    found = Credentials(username="hidden", password="hidden", registry_token="hidden")
    file = parsed(json.dumps({"auths": {"r": {"auth": encoded("hidden:hidden")}}}).encode(), "f")
    assert "hidden" not in repr(auth) + repr(found) + repr(file)
    assert encoded("hidden:hidden") not in repr(file)


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_any_call_gives_credentials_or_the_error(auth: str, server: str, registry: str) -> None:
    with contextlib.suppress(InvalidRequestError):
        first(registry, RegistryAuth(auth=auth, server_address=server), NOWHERE)
