# SPDX-License-Identifier: Apache-2.0
"""Bytes on disk and inodes of a directory tree that another process may change, or may have built
to do harm: counted in slices, with two open descriptors at any depth, in bounded memory.

The way down is by name, the way up by "..", checked against the directory that was left: a rename
may have moved it. Entries that vanish meanwhile do not count, new ones may.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC
_WAITING = 200_000  # names of directories to visit yet; some 20 MB


@dataclass(slots=True)
class _Level:
    """A directory on the way from the top to the current one, with its unvisited ones."""

    name: str
    identity: tuple[int, int]
    waiting: list[str] = field(default_factory=list)


class TreeCount:
    """Counts what is below each of `tops`, which do not count themselves, in `busy_s` seconds.

    With `changed_after_ns` only inodes count whose status changed after that time of the epoch. A
    file with several names is divided among them, so that no list of inodes is kept. `complete`
    turns False when directories had to be left out because too many were waiting.
    """

    def __init__(self, *tops: Path, changed_after_ns: int = 0, waiting: int = _WAITING) -> None:
        self.complete = True
        self.busy_s = 0.0
        self._tops = list(tops)
        self._since = changed_after_ns
        self._top = Path()  # the one that is being counted
        self._room = waiting
        self._levels: list[_Level] = []
        self._fd = -1
        self._entries: os._ScandirIterator[str] | None = None
        self._blocks = self._inodes = 0
        self._shared: dict[int, tuple[int, int]] = {}  # by number of links: blocks, names

    def advance(self, until: float) -> bool:
        """Count on until time.monotonic() passes `until`, one entry at least; True = done.

        Raises OSError, FileNotFoundError for a top that is not there.
        """
        started = time.monotonic()
        try:
            while self._fd >= 0 or self._next_top():
                while self._step():
                    if time.monotonic() >= until:
                        return False
                self.close()
        except BaseException:
            self.close()
            raise
        finally:
            self.busy_s += time.monotonic() - started
        return True

    @property
    def usage(self) -> tuple[int, int]:
        """Bytes and inodes found so far."""
        used, inodes = self._blocks * 512, self._inodes
        for links, (blocks, names) in self._shared.items():
            used += blocks * 512 // links
            inodes += -(-names // links)
        return used, inodes

    def close(self) -> None:
        """Give the descriptor back; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._entries is not None:
            self._entries.close()
            self._entries = None
        self._levels.clear()

    def _next_top(self) -> bool:
        if not self._tops:
            return False
        self._top = self._tops.pop(0)
        self._enter(os.open(self._top, _FLAGS), "")
        return True

    def _step(self) -> bool:
        """Count one entry, or go to the next directory; False when there is none."""
        level = self._levels[-1]
        if self._entries is not None:
            entry = next(self._entries, None)
            if entry is None:
                self._entries = None
            else:
                self._count(entry, level)
            return True
        if level.waiting:
            self._room += 1
            self._descend(level.waiting.pop())
            return True
        return self._ascend()

    def _count(self, entry: os.DirEntry[str], level: _Level) -> None:
        with contextlib.suppress(FileNotFoundError):
            facts = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                if self._room:
                    self._room -= 1
                    level.waiting.append(entry.name)
                else:
                    self.complete = False
            if facts.st_ctime_ns <= self._since:
                return
            if facts.st_nlink > 1 and not stat.S_ISDIR(facts.st_mode):
                blocks, names = self._shared.get(facts.st_nlink, (0, 0))
                self._shared[facts.st_nlink] = blocks + facts.st_blocks, names + 1
                return
            self._blocks += facts.st_blocks
            self._inodes += 1

    def _descend(self, name: str) -> None:
        try:
            fd = os.open(name, _FLAGS, dir_fd=self._fd)
        except (FileNotFoundError, NotADirectoryError):
            return  # gone, or something else by now
        self._enter(fd, name)

    def _enter(self, fd: int, name: str) -> None:
        self._take(fd)
        self._levels.append(_Level(name, _identity(fd)))
        self._entries = os.scandir(fd)

    def _ascend(self) -> bool:
        self._levels.pop()
        if not self._levels:
            return False
        with contextlib.suppress(FileNotFoundError):
            fd = os.open("..", _FLAGS, dir_fd=self._fd)
            if _identity(fd) == self._levels[-1].identity:
                self._take(fd)
                return True
            os.close(fd)
        self._find_back()
        return True

    def _find_back(self) -> None:
        """After a rename: down from the top as far as the names lead to the same directories."""
        self._take(os.open(self._top, _FLAGS))
        for depth, level in enumerate(self._levels[1:], 1):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                fd = os.open(level.name, _FLAGS, dir_fd=self._fd)
                if _identity(fd) == level.identity:
                    self._take(fd)
                    continue
                os.close(fd)
            self._room += sum(len(lost.waiting) for lost in self._levels[depth:])
            del self._levels[depth:]
            return

    def _take(self, fd: int) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd


def _identity(fd: int) -> tuple[int, int]:
    facts = os.fstat(fd)
    return facts.st_dev, facts.st_ino
