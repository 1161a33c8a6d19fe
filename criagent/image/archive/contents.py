# SPDX-License-Identifier: Apache-2.0
"""What the unpack worker finds in an archive, as the agent gets it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry that was skipped, or a name of it, and the reason."""

    entry: str
    why: str


@dataclass(slots=True)
class Contents:
    """The result: names by the digest of the manifest, whose blobs are all stored."""

    images: dict[str, list[str]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


def plain_copy(path: Path) -> Path:
    """Where the decompressed archive lies while it is read."""
    return path.with_name(path.name + ".plain")
