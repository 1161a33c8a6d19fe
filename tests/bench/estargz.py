# SPDX-License-Identifier: Apache-2.0
"""Layers in the form of eStargz, from files of this system (stargz-snapshotter, docs/estargz.md).

Each header and each chunk of 4 MiB of a file is a gzip member of its own; an index of their places
(the TOC) and a footer that says where it is follow. Files that a start needs come first, before
the landmark, as the tools for it put them.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.image_builder import digest

CHUNK = 4 << 20
FOOTER = 51
LANDMARK = ".prefetch.landmark"
_TOC = "stargz.index.json"
Json = dict[str, Any]


@dataclass(slots=True)
class Part:
    """A stretch of a tar, compressed as a member; `about` is its entry of the TOC."""

    tar: bytes
    about: Json | None = None
    packed: bytes = b""

    def __post_init__(self) -> None:
        packer = zlib.compressobj(6, zlib.DEFLATED, 31)
        self.packed = packer.compress(self.tar) + packer.flush()


@dataclass(slots=True)
class Layer:
    """A layer: its blob and the tar in it."""

    blob: bytearray = field(default_factory=bytearray)
    tar: bytearray = field(default_factory=bytearray)

    def add(self, part: Part) -> int:
        """Append a part; its offset in the blob."""
        offset = len(self.blob)
        self.blob += part.packed
        self.tar += part.tar
        return offset


def parts_of(tops: Sequence[Path]) -> dict[str, list[Part]]:
    """What the trees at `tops` are in a layer, by name, in the order of a tar."""
    with tarfile.open(fileobj=io.BytesIO(), mode="w") as names:
        found = [names.gettarinfo(path) for path in _walk(tops)]
    kept = [one for one in found if one.isfile() or one.isdir() or one.issym() or one.islnk()]
    return {one.name: _parts(one) for one in kept}


def layer(parts: Mapping[str, list[Part]], first: AbstractSet[str] = frozenset()) -> Layer:
    """The layer of these, the files named in `first` before the others."""
    made, entries = Layer(), []
    mark = tarfile.TarInfo(LANDMARK)
    mark.size = 1
    ahead = [name for name in parts if name in first]
    rest = [name for name in parts if name not in first]
    for some in (*(parts[name] for name in ahead), _parts(mark), *(parts[name] for name in rest)):
        for part in some:
            offset = made.add(part)
            if part.about is not None:
                entries.append({**part.about, "offset": offset})
    _end(made, entries)
    return made


def _walk(tops: Sequence[Path]) -> list[Path]:
    found = []
    for top in tops:
        found.append(top)
        if top.is_dir() and not top.is_symlink():
            found += sorted(top.rglob("*"))
    return found


def _parts(entry: tarfile.TarInfo) -> list[Part]:
    """The header of a member, and each chunk of its content."""
    about: Json = {
        "name": entry.name,
        "type": "reg" if entry.isreg() else "dir" if entry.isdir() else "symlink",
        "modtime": "2026-01-01T00:00:00Z",
        "mode": entry.mode,
    }
    if entry.islnk():
        about["type"] = "hardlink"
    if entry.linkname:
        about["linkName"] = entry.linkname
    header = entry.tobuf(tarfile.PAX_FORMAT)
    if not entry.isreg() or not entry.size:
        return [Part(header, about)]
    content = b"\x0f" if entry.name == LANDMARK else Path("/", entry.name).read_bytes()
    about.update(size=len(content), digest=digest(content))
    found = [Part(header)]
    for at in range(0, len(content), CHUNK):
        piece = content[at : at + CHUNK]
        padding = b"\0" * (-len(content) % 512 if at + CHUNK >= len(content) else 0)
        chunk = {"chunkOffset": at, "chunkSize": len(piece), "chunkDigest": digest(piece)}
        same = about if at == 0 else {"name": entry.name, "type": "chunk"}
        found.append(Part(piece + padding, {**same, **chunk}))
    return found


def _end(made: Layer, entries: list[Json]) -> None:
    """Append the TOC and the footer that says where it begins."""
    toc = json.dumps({"version": 1, "entries": entries}).encode()
    index = tarfile.TarInfo(_TOC)
    index.size = len(toc)
    place = made.add(Part(index.tobuf(tarfile.PAX_FORMAT) + toc + b"\0" * (-len(toc) % 512 + 1024)))
    extra = b"SG" + struct.pack("<H", 22) + b"%016xSTARGZ" % place
    made.blob += b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", len(extra)) + extra
    made.blob += b"\x01\0\0\xff\xff" + bytes(8)


def toc_offset(footer: bytes) -> int:
    """Where the TOC begins."""
    return int(footer[16:32], 16)


def read_toc(packed: bytes) -> list[Json]:
    """The entries of a TOC as it is in the blob."""
    content = unpacked(packed)
    index = tarfile.TarInfo.frombuf(content[:512], "utf-8", "strict")
    entries: list[Json] = json.loads(content[512 : 512 + index.size])["entries"]
    return entries


def unpacked(members: bytes) -> bytes:
    """The content of gzip members that follow one another."""
    found = bytearray()
    while members:
        reader = zlib.decompressobj(31)
        found += reader.decompress(members)
        members = reader.unused_data
    return bytes(found)
