# SPDX-License-Identifier: Apache-2.0
"""Credentials for registries: those of the CRI call, else those of files of the node.

Credentials never appear in a repr, and belong to one registry host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from criagent.base.errors import InvalidRequestError
from criagent.image.hosts.auth_file import (
    AuthFile,
    Credentials,
    Helper,
    canonical,
    decoded,
    host_of,
)

__all__ = ["Credentials", "Helper", "RegistryAuth", "credentials_for", "same_registry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryAuth:
    """The contents of the CRI's AuthConfig."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    auth: str = field(default="", repr=False)
    server_address: str = ""
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


def credentials_for(
    name: str, auth: RegistryAuth | None, files: Sequence[AuthFile], *, mirror: bool = False
) -> tuple[Credentials | Helper, ...]:
    """Credentials for the image of the name HOST[:PORT][/REPOSITORY], empty to go without.

    The first counts, or the next one if it is a helper that has none.

    Those of the call count when their server address is this registry's, or empty: then they are
    for the registry that the image names, and not for a `mirror` of it, which has to be named or
    stand in one of the files, which count in their order. Raises InvalidRequestError for an `auth`
    that is not base64 of user:password.
    """
    registry = canonical(name.partition("/")[0].lower())
    if mirror and auth is not None and host_of(auth.server_address) != registry:
        auth = None
    if auth is not None and any(
        (auth.username, auth.auth, auth.identity_token, auth.registry_token)
    ):
        if auth.server_address and host_of(auth.server_address) != registry:
            return ()
        username, password = auth.username, auth.password
        if auth.auth and not username:
            username, password = _decoded(auth.auth)
        given = Credentials(
            username=username,
            password=password,
            identity_token=auth.identity_token,
            registry_token=auth.registry_token,
        )
        return (given,)
    sources: list[Credentials | Helper] = []
    for file in files:
        if found := file.find(name):
            sources.append(found)
        if isinstance(found, Credentials):  # nothing after them would count
            break
    return tuple(sources)


def _decoded(auth: str) -> tuple[str, str]:
    try:
        return decoded(auth)
    except ValueError:  # of base64 and of UTF-8 alike
        raise InvalidRequestError("auth.auth is not valid base64 of user:password") from None


def same_registry(one: str, other: str) -> bool:
    """Whether two names, `host[:port]`, mean the same registry."""
    return canonical(one.lower()) == canonical(other.lower())
