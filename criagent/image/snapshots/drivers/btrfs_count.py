# SPDX-License-Identifier: Apache-2.0
"""What a container has allocated in its subvolume and in those that it made: see `Count`.

The image's files are in the same subvolume. A walk would have to look at each of them, once for
each container, and would count a file of the image as a whole when one block of it was changed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator
from pathlib import Path

from criagent.kernel import btrfs
from criagent.kernel.btrfs_changes import changes


class SubvolumeCount:
    """Counts the subvolume `top`, but not its directories `fixed`, which the driver made."""

    complete = True

    def __init__(self, top: Path, fixed: tuple[Path, ...]) -> None:
        self.usage = (0, 0)
        self.busy_s = 0.0
        self._top = top
        self._fixed = fixed
        self._steps = self._count()

    def advance(self, until: float) -> bool:
        """See `Count`. Raises FileNotFoundError when the subvolume is gone."""
        started = time.monotonic()
        try:
            for _ in self._steps:
                if time.monotonic() >= until:
                    return False
        finally:
            self.busy_s += time.monotonic() - started
        return True

    def close(self) -> None:
        """See `Count`."""
        self._steps.close()

    def _count(self) -> Generator[None]:
        place = os.open(self._top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            own = btrfs.info(place)
            ignored = {btrfs.TOP_INODE}
            for path in self._fixed:
                with contextlib.suppress(FileNotFoundError):
                    ignored.add(path.stat().st_ino)
            waiting = [own.id]
            while waiting:
                one = waiting.pop()
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    waiting += btrfs.nested(place, one)
                    for size, inodes in changes(
                        place, one, own.made_by, ignored if one == own.id else ()
                    ):
                        self.usage = self.usage[0] + size, self.usage[1] + inodes
                        yield
        finally:
            os.close(place)
