"""Verified content on disk: `blobs/<algorithm>/<hex>`.

A file under its final name is complete, hashed and durable: it is written as `<hex>.part`, which
survives a cancel so that the next try goes on from there, then synced and renamed.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from criagent.errors import CorruptError, ExhaustedError
from criagent.image.digest import ALGORITHMS, Digest

_CHUNK = 1 << 20


class BlobFiles:
    """The blobs directory; synchronous, for the `fs` executor."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._count = itertools.count()

    def prepare(self) -> None:
        """Make the directory; idempotent."""
        for algorithm in ALGORITHMS:
            (self._root / algorithm).mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def root(self) -> Path:
        """The directory."""
        return self._root

    def path(self, digest: Digest) -> Path:
        """Where the blob lies, or will."""
        return self._root / digest.algorithm / digest.hex

    def part(self, digest: Digest) -> Path:
        """Where its download grows."""
        return self._root / digest.algorithm / f"{digest.hex}.part"

    def own_part(self, digest: Digest) -> Path:
        """A part that no other writer of the same blob has; it is not resumed."""
        return (
            self._root / digest.algorithm / f"{digest.hex}.{os.getpid()}.{next(self._count)}.part"
        )

    def has(self, digest: Digest) -> bool:
        """Whether the blob is here, whole."""
        return self.path(digest).exists()

    def read(self, digest: Digest, limit: int) -> bytes:
        """Content of a small blob. Raises FileNotFoundError, CorruptError."""
        with self.path(digest).open("rb") as file:
            content = file.read(limit + 1)
        hasher = digest.hasher()
        hasher.update(content)
        if len(content) > limit or hasher.hexdigest() != digest.hex:
            raise CorruptError(f"blob {digest} is damaged on disk; `criagent image fsck --repair`")
        return content

    def store(self, digest: Digest, content: bytes) -> None:
        """Put a small blob whose digest was checked."""
        if self.has(digest):
            return
        part = self.own_part(digest)
        with removed_on_error(part):
            with disk_full(self._root), part.open("wb") as file:
                file.write(content)
            self.finish(digest, part)

    def finish(self, digest: Digest, part: Path) -> None:
        """Make a verified part durable under its final name."""
        path = self.path(digest)
        with disk_full(self._root):
            fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            part.rename(path)
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def verify_part(self, digest: Digest, size: int, part: Path) -> None:
        """Hash the finished part; a wrong one is deleted. Raises CorruptError."""
        hasher, length = digest.hasher(), 0
        with part.open("rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
                length += len(chunk)
        if length != size or hasher.hexdigest() != digest.hex:
            part.unlink()
            raise CorruptError(
                f"blob {digest}: received {length} bytes with digest "
                f"{digest.algorithm}:{hasher.hexdigest()}, want {size} bytes"
            )

    def remove(self, digest: Digest) -> None:
        """Delete blob and part; idempotent."""
        self.path(digest).unlink(missing_ok=True)
        self.part(digest).unlink(missing_ok=True)

    def all(self) -> Iterator[tuple[Digest, int]]:
        """Every whole blob with its size."""
        for folder in self._root.iterdir():
            for entry in folder.iterdir():
                if "." not in entry.name:
                    yield Digest(folder.name, entry.name), entry.stat().st_size

    def parts(self) -> Iterator[Path]:
        """Every unfinished download, and the records of finished ranges."""
        for folder in self._root.iterdir():
            yield from folder.glob("*.part")
            yield from folder.glob("*.ranges")


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
    """Turn ENOSPC and EDQUOT into ExhaustedError that says where space is missing."""
    try:
        yield
    except OSError as exc:
        if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ExhaustedError(
                f"no space left below {where}; remove images or enlarge the disk"
            ) from exc
        raise
