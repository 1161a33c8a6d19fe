# SPDX-License-Identifier: Apache-2.0
"""Content digests (OCI image specification, descriptor.md): parsed once, never strings again."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from criagent.base.errors import InvalidRequestError

ALGORITHMS = ("sha256", "sha384", "sha512")  # those of Go's go-digest
_FORM = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class Digest:
    """`algorithm:hex`, lower case and of the right length; made by `parse_digest`."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    def hasher(self) -> Any:
        """A fresh hash object of the digest's algorithm."""
        return hashlib.new(self.algorithm)


def parse_digest(text: str) -> Digest:
    """The digest `text`; raises InvalidRequestError for anything else, paths included."""
    if _FORM.fullmatch(text) is None:
        raise InvalidRequestError(f"invalid digest {text[:160]!r}: expected sha256:<64 hex digits>")
    algorithm, _, number = text.partition(":")
    return Digest(algorithm, number)


def digest_of(content: bytes) -> Digest:
    """The SHA-256 digest of `content`."""
    return Digest("sha256", hashlib.sha256(content).hexdigest())
