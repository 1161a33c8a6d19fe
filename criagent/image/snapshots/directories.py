# SPDX-License-Identifier: Apache-2.0
"""Directories `<root>/<number>` and the trash beside them, for drivers that store trees of files.

Removal renames into `<root>/trash` first, so it needs no space and a crash leaves nothing but
trash. Synchronous.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import structlog

from criagent.kernel.trees import remove_tree

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class NumberedDirectories:
    """One directory for each number below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._trash = root / "trash"

    def prepare(self) -> None:
        """Make the fixed directories; idempotent."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._trash.mkdir(exist_ok=True, mode=0o700)

    def path(self, number: int) -> Path:
        """The directory, whether it exists or not."""
        return self.root / str(number)

    def trash(self, number: int) -> None:
        """Rename the directory into the trash; idempotent."""
        with contextlib.suppress(FileNotFoundError):
            self.path(number).rename(self._trash / str(number))

    def empty_trash(self) -> None:
        """Delete what was renamed away; logs what cannot be deleted."""
        for entry in self._trash.iterdir():
            try:
                remove_tree(entry)
            except OSError as exc:
                log.warning("trash_not_deleted", path=str(entry), error=str(exc))

    def sweep(self, known: frozenset[int]) -> None:
        """Delete the directories of other numbers, and the trash."""
        for entry in self.root.iterdir():
            if entry.name.isdigit() and int(entry.name) not in known:
                log.warning("orphan_removed", path=str(entry))
                self.trash(int(entry.name))
        self.empty_trash()
