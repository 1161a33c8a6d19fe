# SPDX-License-Identifier: Apache-2.0
"""The journal of a recorded disk, and the disk that a power cut at one of its entries leaves."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

WRITE, FLUSH, MARK = 1, 2, 3
BEGIN, END = b"the life begins", b"the life ends"  # marks around what is cut off
_ENTRY = struct.Struct("<BQI")
_PAGE = 4096  # what a disk writes as a whole


@dataclass(frozen=True, slots=True)
class Entry:
    """A write of `size` bytes to `offset`, a flush, or a mark; `at` is its data in the journal."""

    kind: int
    offset: int
    size: int
    at: int


class Journal:
    """A file of entries, each a head and its data."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @classmethod
    def create(cls, path: Path) -> Journal:
        """An empty journal that replaces what is at `path`."""
        return cls(path.open("w+b", buffering=0))

    @classmethod
    def open(cls, path: Path) -> Journal:
        """A journal whose recording has ended."""
        return cls(path.open("rb"))

    def close(self) -> None:
        self._file.close()

    def append(self, kind: int, offset: int, data: memoryview) -> None:
        """One entry; the caller answers its request afterwards."""
        os.writev(self._file.fileno(), [_ENTRY.pack(kind, offset, len(data)), data])

    def entries(self) -> Iterator[Entry]:
        """All entries from the first on."""
        self._file.seek(0)
        while head := self._file.read(_ENTRY.size):
            kind, offset, size = _ENTRY.unpack(head)
            at = self._file.tell()
            yield Entry(kind, offset, size, at)
            self._file.seek(at + size)

    def data(self, entry: Entry) -> bytes:
        """What the entry wrote, or the text of a mark."""
        return os.pread(self._file.fileno(), entry.size, entry.at)


class Replay:
    """Disks of cuts at rising positions of one journal.

    `durable` is a sparse file of everything up to the last flush before the cut. What was written
    after it was in the cache of the disk: any of these writes may have reached the disk, and one of
    several pages in part. `image` is what the disk had when the journal began, zeros without one.
    """

    def __init__(
        self, journal: Journal, durable: Path, size: int, image: Path | None = None
    ) -> None:
        self._journal = journal
        self._entries = list(journal.entries())
        self._durable = durable
        self._flushed = 0  # entries before it are in `durable`
        durable.unlink(missing_ok=True)
        if image is not None:
            subprocess.run(["cp", "--sparse=always", image, durable], check=True)
        with durable.open("ab") as file:
            file.truncate(size)

    def __len__(self) -> int:
        return len(self._entries)

    def position(self, mark: bytes) -> int:
        """The place of the first such mark; raises ValueError when there is none."""
        for number, entry in enumerate(self._entries):
            if entry.kind == MARK and self._journal.data(entry).strip() == mark:
                return number
        raise ValueError(f"no mark {mark!r}")

    def marks(self, cut: int) -> list[bytes]:
        """The marks before the cut, in their order."""
        found = (entry for entry in self._entries[:cut] if entry.kind == MARK)
        return [self._journal.data(entry).strip() for entry in found]

    def disk(self, cut: int, chance: random.Random, target: Path) -> int:
        """Make `target` the disk after a cut before entry `cut`; returns how many writes were lost.

        `cut` must not be less than that of the call before.
        """
        flushes = [n for n in range(self._flushed, cut) if self._entries[n].kind == FLUSH]
        if flushes:
            self._write(self._durable, self._entries[self._flushed : flushes[-1]])
            self._flushed = flushes[-1]
        cached = [entry for entry in self._entries[self._flushed : cut] if entry.kind == WRITE]
        share = chance.choice((0.0, 0.5, 0.9, 1.0))
        kept = [entry for entry in cached if chance.random() < share]
        subprocess.run(["cp", "--sparse=always", self._durable, target], check=True)
        self._write(target, [_torn(entry, chance) for entry in kept])
        return len(cached) - len(kept)

    def _write(self, path: Path, entries: list[Entry]) -> None:
        with path.open("r+b", buffering=0) as file:
            for entry in entries:
                if entry.kind == WRITE:
                    os.pwrite(file.fileno(), self._journal.data(entry), entry.offset)


def _torn(entry: Entry, chance: random.Random) -> Entry:
    if entry.size <= _PAGE or chance.random() > 0.1:
        return entry
    pages = chance.randrange(entry.size // _PAGE)
    return Entry(entry.kind, entry.offset, pages * _PAGE, entry.at)
