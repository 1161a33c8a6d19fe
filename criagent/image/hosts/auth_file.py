# SPDX-License-Identifier: Apache-2.0
"""A file of credentials: Docker's config.json, and containers-auth.json (its man page, section 5).

Its parts in the order in which they count: `credHelpers` for a registry; `auths`, of which the key
that names most of the image wins (registry/namespace/repository, then each part above it, then the
registry); `credsStore` for what has no entry there. What stands for one registry is not given to
another.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from criagent.base.errors import InvalidRequestError

_LARGEST = 1 << 20  # bytes
_PROGRAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HUB = "https://index.docker.io/v1/"  # how helpers know docker.io


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Helper:
    """A program docker-credential-NAME that has to be asked, and `file`, which names it."""

    name: str
    server: str
    file: str

    @property
    def program(self) -> str:
        """The name of its file."""
        return f"docker-credential-{self.name}"


@dataclass(frozen=True, slots=True)
class AuthFile:
    """What a file says; `name` is its path. Nothing of it is in its repr.

    A `problem` is raised when something is looked up: pulls that bring their own credentials need
    no file.
    """

    name: str
    auths: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    helpers: Mapping[str, str] = field(default_factory=dict)
    store: str = ""
    problem: str = ""

    def find(self, name: str) -> Credentials | Helper | None:
        """Those for the image of the name HOST[:PORT][/REPOSITORY].

        Raises InvalidRequestError for a file or an entry that cannot be read.
        """
        if self.problem:
            raise InvalidRequestError(self.problem)
        registry = canonical(name.partition("/")[0].lower())
        server = _HUB if registry == "docker.io" else registry
        for key, program in self.helpers.items():
            if host_of(key) == registry:
                return Helper(name=program, server=server, file=self.name)
        if found := self._entry(name, registry):
            return found
        if self.store:
            return Helper(name=self.store, server=server, file=self.name)
        return None

    def programs(self) -> list[str]:
        """The names of the helpers that the file names."""
        return sorted({*self.helpers.values(), *filter(None, [self.store])})

    def _entry(self, name: str, registry: str) -> Credentials | None:
        path = name.partition("/")[2]
        for key in _above(f"{registry}/{path}" if path else registry):
            if (entry := self.auths.get(key)) and (found := self._credentials(key, entry)):
                return found
        for key, entry in self.auths.items():  # as `docker login` wrote them: URLs, with a path
            if "/" in key and "//" not in key and not key.rstrip("/").endswith(("/v1", "/v2")):
                continue  # of a namespace
            if host_of(key) == registry and (found := self._credentials(key, entry)):
                return found
        return None

    def _credentials(self, key: str, entry: Mapping[str, Any]) -> Credentials | None:
        if token := entry.get("identitytoken"):
            return Credentials(identity_token=str(token))
        if not entry.get("auth"):
            return None
        try:
            username, password = decoded(str(entry["auth"]))
        except ValueError:
            raise InvalidRequestError(
                f"{self.name}: auths: {key[:200]!r}: auth is not valid base64 of user:password"
            ) from None
        return Credentials(username=username, password=password)


def read(file: Path) -> AuthFile:
    """The file; one that is missing has nothing. Raises InvalidRequestError that names it."""
    try:
        with file.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return AuthFile(str(file))
    except OSError as error:
        raise InvalidRequestError(
            f"the credentials in {file} cannot be read: {error.strerror}"
        ) from None
    return parsed(content, str(file))


def read_later(file: Path) -> AuthFile:
    """As `read`, but what is wrong with the file is raised by `find`."""
    try:
        return read(file)
    except InvalidRequestError as error:
        return AuthFile(str(file), problem=str(error))


def parsed(content: bytes, name: str) -> AuthFile:
    """The content of a file. Raises InvalidRequestError, in whose text is nothing of it."""
    if len(content) > _LARGEST:
        raise _broken(name, f"is larger than {_LARGEST} bytes")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise _broken(name, "is not JSON") from None
    if not isinstance(document, dict):
        raise _broken(name, "is not an object of JSON")
    auths = document.get("auths") or {}
    helpers = document.get("credHelpers") or {}
    store = document.get("credsStore") or ""
    if not isinstance(auths, dict) or not all(isinstance(x, dict) for x in auths.values()):
        raise _broken(name, "has an entry in auths that is not an object")
    if not isinstance(helpers, dict):
        raise _broken(name, "has credHelpers that are not an object")
    for program in [*helpers.values(), *filter(None, [store])]:
        if not isinstance(program, str) or not _PROGRAM.fullmatch(program):
            raise _broken(name, "names a credential helper that is not the end of a file name")
    return AuthFile(name, auths, helpers, store)


def decoded(auth: str) -> tuple[str, str]:
    """User and password of an `auth`. Raises ValueError."""
    username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    if not colon:
        raise ValueError("the colon is missing")
    return username, password.rstrip("\0")


def host_of(address: str) -> str:
    """The registry of a server address, with or without a scheme; "" for none."""
    try:
        split = urlsplit(address if "//" in address else f"//{address}")
    except ValueError:
        return ""
    return canonical(split.netloc.rpartition("@")[2].lower())


def canonical(host: str) -> str:
    """One name of a registry that has several."""
    host = host.removesuffix(":443")
    return "docker.io" if host in {"index.docker.io", "registry-1.docker.io"} else host


def _above(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition("/")[0]


def _broken(name: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"the file of credentials {name} {why}; repair it or remove it")
