# SPDX-License-Identifier: Apache-2.0
"""Verified content on disk: `blobs/<algorithm>/<hex>`.

A file under its final name is complete, hashed and durable: it is written as `<hex>.part`, which
survives a cancellation so that the next attempt resumes it, then synced and renamed.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from criagent.base.errors import CorruptError, ExhaustedError
from criagent.image.documents.digest import ALGORITHMS, Digest

_CHUNK = 1 << 18
_AHEAD_S = 60.0  # a time of change that is later than this was set by a clock that was wrong


@dataclass(frozen=True, slots=True)
class PartsUsage:
    """Disk usage of unfinished downloads."""

    used_bytes: int = 0
    files: int = 0


class BlobFiles:
    """The blobs directory; synchronous, for the `fs` executor."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._count = itertools.count()
        self._sizes: dict[Digest, int] = {}
        self._changing = threading.Lock()  # a final name appears or goes, or they are counted
        self._storing: set[Path] = set()  # parts of small blobs, for moments
        self.parts_usage = PartsUsage()  # when they were counted last

    def prepare(self) -> None:
        """Make the directory and count what is in it; idempotent."""
        for algorithm in ALGORITHMS:
            (self._root / algorithm).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.count()

    @property
    def root(self) -> Path:
        """The directory."""
        return self._root

    def path(self, digest: Digest) -> Path:
        """The path of the blob, whether it exists or not."""
        return self._root / digest.algorithm / digest.hex

    def part(self, digest: Digest) -> Path:
        """The file of the unfinished download."""
        return self._root / digest.algorithm / f"{digest.hex}.part"

    def own_part(self, digest: Digest) -> Path:
        """A part used by one writer only; it is not resumed."""
        return (
            self._root / digest.algorithm / f"{digest.hex}.{os.getpid()}.{next(self._count)}.part"
        )

    def sizes(self) -> dict[Digest, int]:
        """Bytes of every complete blob, from memory: the last count with later changes."""
        return self._sizes.copy()

    def has(self, digest: Digest) -> bool:
        """Whether the complete blob is here."""
        return self.path(digest).exists()

    def read(self, digest: Digest, limit: int) -> bytes:
        """Content of a small blob. Raises FileNotFoundError, CorruptError."""
        with self.path(digest).open("rb") as file:
            content = file.read(limit + 1)
        hasher = digest.hasher()
        hasher.update(content)
        if len(content) > limit or hasher.hexdigest() != digest.hex:
            raise CorruptError(
                f"blob {digest} is damaged on disk; run `criagent image fsck --repair`"
            )
        return content

    def store(self, digest: Digest, content: bytes) -> None:
        """Store a small blob whose digest was checked."""
        if self.has(digest):
            return
        part = self.own_part(digest)
        self._storing.add(part)
        try:
            with removed_on_error(part):
                with disk_full(self._root), part.open("wb") as file:
                    file.write(content)
                self.finish(digest, part)
        finally:
            self._storing.discard(part)

    def finish(self, digest: Digest, part: Path) -> None:
        """Make a verified part durable under its final name.

        When it cannot be synced it is deleted: its pages then count as written although they are
        not (fsync(2), EIO), so that the next attempt would succeed with a file that is damaged.
        """
        path = self.path(digest)
        with disk_full(self._root):
            fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            except OSError:
                part.unlink(missing_ok=True)
                raise
            finally:
                os.close(fd)
            with self._changing:
                part.rename(path)
                self._sizes[digest] = path.stat().st_size
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def verify_part(self, digest: Digest, size: int, part: Path) -> None:
        """Hash the finished part; a wrong one is deleted. Raises CorruptError."""
        hasher, length = digest.hasher(), 0
        view = memoryview(bytearray(_CHUNK))
        with part.open("rb", buffering=0) as file:
            while got := file.readinto(view):
                hasher.update(view[:got])
                length += got
        if length != size or hasher.hexdigest() != digest.hex:
            part.unlink()
            raise CorruptError(
                f"blob {digest}: received {length} bytes with digest "
                f"{digest.algorithm}:{hasher.hexdigest()} instead of {size} bytes"
            )

    def remove(self, digest: Digest) -> None:
        """Delete blob and part; idempotent."""
        with self._changing:
            self.path(digest).unlink(missing_ok=True)
            self._sizes.pop(digest, None)
        self.discard(self.part(digest))

    @staticmethod
    def discard(part: Path) -> None:
        """Delete an unfinished download and the record of its ranges; idempotent."""
        part.unlink(missing_ok=True)
        part.with_suffix(".ranges").unlink(missing_ok=True)

    def all(self) -> Iterator[tuple[Digest, int]]:
        """Every complete blob with its size."""
        for folder in self._root.iterdir():
            for entry in folder.iterdir():
                if "." not in entry.name:
                    with suppress(FileNotFoundError):
                        yield Digest(folder.name, entry.name), entry.stat().st_size

    def parts(self) -> Iterator[Path]:
        """Every unfinished download, and the records of finished ranges."""
        for folder in self._root.iterdir():
            yield from folder.glob("*.part")
            yield from folder.glob("*.ranges")

    def count(self) -> dict[Digest, int]:
        """Bring `sizes`, which it returns, and `parts_usage` up to date with the disk.

        The unpack worker takes blobs of archives in, and people put files here.
        """
        with self._changing:
            self._sizes = dict(self.all())
            sizes = self._sizes.copy()
        used = files = 0
        for part in self.parts():
            with suppress(FileNotFoundError):
                used, files = used + _space(part), files + 1
        self.parts_usage = PartsUsage(used, files)
        return sizes

    def unused_for(self, digests: Iterable[Digest], now_s: float, age_s: float) -> list[Digest]:
        """Blobs whose file was not changed for so long, or does not exist."""
        return [digest for digest in digests if _older(self.path(digest), now_s, age_s)]

    def old_parts(self, now_s: float, age_s: float) -> list[tuple[Digest, Path]]:
        """Parts and records of ranges that were not changed for so long, with their digests."""
        return [
            (Digest(part.parent.name, part.name.partition(".")[0]), part)
            for part in self.parts()
            if part not in self._storing and _older(part, now_s, age_s)
        ]

    @staticmethod
    def drop_part(part: Path) -> int:
        """Delete a part; returns the bytes that it took."""
        with suppress(FileNotFoundError):
            used = _space(part)
            part.unlink()
            return used
        return 0


def _space(path: Path) -> int:
    """Bytes that the file takes on disk; unfinished ranges of a part take none."""
    return path.stat().st_blocks * 512


def _older(path: Path, now_s: float, age_s: float) -> bool:
    try:
        changed = path.stat().st_mtime
    except FileNotFoundError:
        return True
    return not age_s or changed <= now_s - age_s or changed > now_s + _AHEAD_S


@contextmanager
def removed_on_error(part: Path) -> Iterator[None]:
    """Delete `part` when the block fails."""
    try:
        yield
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def disk_full(where: Path) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT into ExhaustedError that names the directory."""
    try:
        yield
    except OSError as exc:
        if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ExhaustedError(
                f"no space left below {where}; remove images or enlarge the disk"
            ) from exc
        raise
