# SPDX-License-Identifier: Apache-2.0
"""Free disk space for foreign data: checked before it is used up."""

from __future__ import annotations

import os
from pathlib import Path

from criagent.base.errors import ExhaustedError

_RESERVE = 1 << 30  # bytes that stay free for the rest of the node,
_RESERVE_SHARE = 20  # or a twentieth of a smaller disk
_STEP = 64 << 20  # other programs write too: check again after so many bytes


class Room:
    """What may be written to the file system of `where`, which always keeps a reserve free."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self._left = 0

    def take(self, size: int) -> None:
        """Count `size` bytes that are about to be written. Raises ExhaustedError."""
        if size > self._left:
            facts = os.statvfs(self.where)
            reserve = min(_RESERVE, facts.f_blocks * facts.f_frsize // _RESERVE_SHARE)
            free = facts.f_bavail * facts.f_frsize - reserve
            if size > free:
                raise ExhaustedError(
                    f"no space left below {self.where}, where {reserve >> 20} MiB stay reserved "
                    "for the node; remove images or enlarge the disk"
                )
            self._left = min(free, max(size, _STEP))
        self._left -= size
