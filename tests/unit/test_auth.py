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
from criagent.image.hosts.credentials import Credentials, RegistryAuth, credentials_for

NOWHERE = Path("/nonexistent/config.json")


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def docker(folder: Path, document: object) -> Path:
    path = folder / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


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
    found = credentials_for(registry, auth, NOWHERE)
    assert (found is not None) == used


def test_a_mirror_gets_only_what_names_it(tmp_path: Path) -> None:
    nameless = RegistryAuth(username="u", password="p")
    named = RegistryAuth(username="u", password="p", server_address="mirror.test")
    path = docker(tmp_path, {"auths": {"mirror.test": {"auth": encoded("m:q")}}})
    assert credentials_for("mirror.test", nameless, NOWHERE, mirror=True) is None
    assert credentials_for("mirror.test", None, NOWHERE, mirror=True) is None
    assert credentials_for("mirror.test", named, NOWHERE, mirror=True) is not None
    assert credentials_for("mirror.test", nameless, path, mirror=True) == Credentials(
        username="m", password="q"
    )


@pytest.mark.parametrize("text", ["u:p", "u:p:with:colons", "ü:é", ":", "u:"])
def test_auth_is_base64_of_user_and_password(text: str) -> None:
    found = credentials_for("r", RegistryAuth(auth=encoded(text)), NOWHERE)
    assert found is not None
    assert found.basic == "Basic " + encoded(text)


@pytest.mark.parametrize(
    "auth", ["!", "é", encoded("no colon"), "YQ", base64.b64encode(b"\xff:").decode()]
)
def test_any_other_auth_is_refused(auth: str) -> None:
    with pytest.raises(InvalidRequestError):
        credentials_for("r", RegistryAuth(auth=auth), NOWHERE)


def test_tokens_pass_through() -> None:
    found = credentials_for("r", RegistryAuth(identity_token="i", registry_token="t"), NOWHERE)
    assert found == Credentials(identity_token="i", registry_token="t")


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"auth": encoded("u:p")}, Credentials(username="u", password="p")),
        ({"auth": encoded("u:p\0\0")}, Credentials(username="u", password="p")),
        ({"identitytoken": "t"}, Credentials(identity_token="t")),
        ({}, None),
        ("text", None),
    ],
)
def test_dockers_file(tmp_path: Path, entry: Any, wanted: Credentials | None) -> None:
    path = docker(tmp_path, {"auths": {"https://[broken": {}, "https://r.test/v2/": entry}})
    assert credentials_for("r.test", None, path) == wanted
    assert credentials_for("other.test", None, path) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"auths": null}', '{"auths": []}', "[" * 100_000]
)
def test_a_broken_file_of_docker_is_none(tmp_path: Path, text: str) -> None:
    assert credentials_for("r.test", None, docker(tmp_path, text)) is None


def test_secrets_do_not_show() -> None:
    auth = RegistryAuth(
        username="hidden", password="hidden", auth="hidden", identity_token="hidden"
    )
    found = Credentials(username="hidden", password="hidden", registry_token="hidden")
    assert "hidden" not in repr(auth) + repr(found)


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_any_call_gives_credentials_or_the_error(auth: str, server: str, registry: str) -> None:
    with contextlib.suppress(InvalidRequestError):
        credentials_for(registry, RegistryAuth(auth=auth, server_address=server), NOWHERE)
