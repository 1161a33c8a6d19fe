# SPDX-License-Identifier: Apache-2.0
"""Image references, in the grammar that containerd and Docker share (distribution/reference).

A short name means docker.io, and a name without a slash its `library`. The repository is at most
255 characters long and a tag 128. tests/vectors/references.json holds answers of the Go module.
Stricter than Go: a reference has at most 1024 characters, a port five digits, and an IPv6 address
must be one.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re

from criagent.base.errors import InvalidRequestError
from criagent.image.documents.digest import Digest, parse_digest

_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(
    rf"(?:\[[0-9a-fA-F:]+\]|{_COMPONENT}(?:\.{_COMPONENT})*)(?::[0-9]{{1,5}})?", re.ASCII
)
_PATH = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
DEFAULT_REGISTRY, _LEGACY = "docker.io", "index.docker.io"
_MAX_PATH = 255  # the repository without its registry, as Go's RepositoryNameTotalLengthMax
_MAX_TEXT = 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """`registry/repository[:tag][@digest]`, always with a registry."""

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def tagged(self) -> str | None:
        """`name:tag`, or None for a reference by digest alone."""
        return None if self.tag is None else f"{self.name}:{self.tag}"

    def with_default_tag(self) -> Reference:
        """The same with `latest` when neither tag nor digest was given."""
        if self.tag is None and self.digest is None:
            return dataclasses.replace(self, tag="latest")
        return self

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"{self.name}{tag}{digest}"


def is_image_id(text: str) -> bool:
    """Whether `text` can only be an image's id without its algorithm, never a name."""
    return _IMAGE_ID.fullmatch(text) is not None


def is_short(text: str) -> bool:
    """Whether a reference names no registry."""
    first, slash, _ = text.partition("/")
    return not slash or not _is_host(first)


def parse_reference(text: str) -> Reference:
    """The reference `text`; raises InvalidRequestError that says which part is wrong."""
    if not text or len(text) > _MAX_TEXT:
        raise _invalid(text, "it is empty" if not text else f"it is longer than {_MAX_TEXT}")
    if is_image_id(text):
        raise _invalid(text, "64 hexadecimal digits are an image id, not a name")
    first, slash, rest = text.partition("/")
    if not slash or not _is_host(first):
        first, rest = DEFAULT_REGISTRY, text
    if first in {DEFAULT_REGISTRY, _LEGACY}:
        first = DEFAULT_REGISTRY
        rest = rest if "/" in rest else f"library/{rest}"
    rest, at, digest_text = rest.partition("@")
    digest = parse_digest(digest_text) if at else None
    path, colon, tag = rest.partition(":")
    if colon and _TAG.fullmatch(tag) is None:
        raise _invalid(text, f"the tag {tag[:140]!r} is invalid")
    if not _is_registry(first):
        raise _invalid(text, f"the registry {first[:140]!r} is invalid")
    if _PATH.fullmatch(path) is None:
        raise _invalid(
            text, "the repository may only contain lower-case letters, digits and separators"
        )
    if len(path) > _MAX_PATH:
        raise _invalid(text, f"the repository is longer than {_MAX_PATH} characters")
    return Reference(registry=first, repository=path, tag=tag if colon else None, digest=digest)


def _is_host(first: str) -> bool:
    """Whether the part before the first slash is a registry, not a part of the repository."""
    return bool(set(".:") & set(first)) or first == "localhost" or first.lower() != first


def _is_registry(text: str) -> bool:
    if _DOMAIN.fullmatch(text) is None:
        return False
    if text.startswith("["):
        try:
            ipaddress.IPv6Address(text[1:].partition("]")[0])
        except ValueError:
            return False
    return True


def _invalid(text: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"invalid image reference {text[:160]!r}: {why}")
