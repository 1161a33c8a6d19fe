# SPDX-License-Identifier: Apache-2.0
"""signedIdentity of policy.json: which name a signature may carry for the image that is pulled.

Kinds and defaults are those of man 5 containers-policy.json. A pull by digest has no tag to
compare, and the digest itself is compared elsewhere.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from criagent.base.errors import InvalidRequestError
from criagent.image.documents.reference import Reference, parse_reference


class _Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """One kind; `type` names it."""


class MatchExact(_Identity, frozen=True, tag="matchExact"):
    """The same name and tag."""


class MatchRepoDigestOrExact(_Identity, frozen=True, tag="matchRepoDigestOrExact"):
    """The same name and tag; for a pull by digest, the same name."""


class MatchRepository(_Identity, frozen=True, tag="matchRepository"):
    """The same name, whatever the tag: signatures of cosign carry none."""


class ExactReference(_Identity, frozen=True, tag="exactReference", rename="camel"):
    """This name and tag."""

    docker_reference: str


class ExactRepository(_Identity, frozen=True, tag="exactRepository", rename="camel"):
    """This name."""

    docker_repository: str


class RemapIdentity(_Identity, frozen=True, tag="remapIdentity", rename="camel"):
    """As MatchRepoDigestOrExact, for a mirror: names below `prefix` were signed below another."""

    prefix: str
    signed_prefix: str


Identity: TypeAlias = (
    MatchExact
    | MatchRepoDigestOrExact
    | MatchRepository
    | ExactReference
    | ExactRepository
    | RemapIdentity
)


def accepts(identity: Identity, wanted: Reference, signed: str) -> bool:
    """Whether a signature that names `signed` counts for `wanted`."""
    match identity:
        case MatchExact():
            return _same(wanted, signed)
        case MatchRepoDigestOrExact():
            return _same_or_by_digest(wanted, signed)
        case MatchRepository():
            return _name(signed) == wanted.name
        case ExactReference():
            return _same(_parsed(identity.docker_reference), signed)
        case ExactRepository():
            return _name(signed) == _name(identity.docker_repository)
        case RemapIdentity():
            return _same_or_by_digest(_remapped(identity, wanted), signed)


def _same(wanted: Reference | None, signed: str) -> bool:
    found = _parsed(signed)
    if wanted is None or found is None or wanted.tag is None or wanted.digest is not None:
        return False
    return (found.name, found.tag, found.digest) == (wanted.name, wanted.tag, None)


def _same_or_by_digest(wanted: Reference, signed: str) -> bool:
    if wanted.digest is not None:
        return _name(signed) == wanted.name
    return _same(wanted, signed)


def _remapped(identity: RemapIdentity, wanted: Reference) -> Reference:
    text, prefix = str(wanted), identity.prefix
    if text.startswith(prefix) and text[len(prefix) : len(prefix) + 1] in {"", "/", ":", "@"}:
        return _parsed(identity.signed_prefix + text[len(prefix) :]) or wanted
    return wanted


def _parsed(text: str) -> Reference | None:
    try:
        return parse_reference(text)
    except InvalidRequestError:
        return None


def _name(text: str) -> str | None:
    found = _parsed(text)
    return None if found is None else found.name
