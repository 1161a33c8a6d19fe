# SPDX-License-Identifier: Apache-2.0
"""Credentials for registries: those of the CRI call, else docker's config.json.

Credentials never appear in a repr, and belong to one registry host.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from criagent.base.errors import InvalidRequestError

_MAX_CONFIG = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryAuth:
    """The contents of the CRI's AuthConfig."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    auth: str = field(default="", repr=False)
    server_address: str = ""
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The authorization of a request: a password, a refresh token, or a ready bearer token."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The Authorization header of basic authentication."""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode()


def credentials_for(
    registry: str, auth: RegistryAuth | None, docker: Path, *, mirror: bool = False
) -> Credentials | None:
    """Credentials for `registry`, or None to go without.

    Those of the call count when their server address is this registry's, or empty: then they are
    for the registry that the image names, and not for a `mirror` of it, which has to be named or
    stand in docker's file. Raises InvalidRequestError for an `auth` that is not base64 of
    user:password.
    """
    registry = _canonical(registry.lower())
    if mirror and auth is not None and _host(auth.server_address) != registry:
        auth = None
    if auth is not None and any(
        (auth.username, auth.auth, auth.identity_token, auth.registry_token)
    ):
        if auth.server_address and _host(auth.server_address) != registry:
            return None
        username, password = auth.username, auth.password
        if auth.auth and not username:
            username, password = _decode(auth.auth)
        return Credentials(
            username=username,
            password=password,
            identity_token=auth.identity_token,
            registry_token=auth.registry_token,
        )
    return _from_docker(registry, docker)


def _from_docker(registry: str, docker: Path) -> Credentials | None:
    try:
        with docker.open("rb") as file:
            document = json.loads(file.read(_MAX_CONFIG))
        entries = document.get("auths", {}).items()
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    for server, entry in entries:
        if _host(server) == registry and isinstance(entry, dict):
            if token := entry.get("identitytoken"):
                return Credentials(identity_token=str(token))
            if entry.get("auth"):
                username, password = _decode(str(entry["auth"]))
                return Credentials(username=username, password=password)
    return None


def _decode(auth: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(auth, validate=True).decode()
    except ValueError:  # of base64 and of UTF-8 alike
        text = ""
    username, colon, password = text.partition(":")
    if not colon:
        raise InvalidRequestError("auth.auth is not valid base64 of user:password")
    return username, password.rstrip("\0")


def _host(address: str) -> str:
    try:
        split = urlsplit(address if "//" in address else f"//{address}")
    except ValueError:
        return ""
    return _canonical(split.netloc.rpartition("@")[2].lower())


def same_registry(one: str, other: str) -> bool:
    """Whether two names, `host[:port]`, mean the same registry."""
    return _canonical(one.lower()) == _canonical(other.lower())


def _canonical(host: str) -> str:
    host = host.removesuffix(":443")
    return "docker.io" if host in {"index.docker.io", "registry-1.docker.io"} else host
