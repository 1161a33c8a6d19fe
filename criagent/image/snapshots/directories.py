# SPDX-License-Identifier: Apache-2.0
"""What drivers that store snapshots as trees of files share: `<root>/<number>/{fs,volumes}`.

Removal renames into `<root>/trash` first, so it needs no space and a crash leaves nothing but
trash.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

import structlog

from criagent.image.snapshots.content_problem import content_problem
from criagent.image.snapshots.driver import MappedIds
from criagent.kernel.trees import remove_tree
from criagent.model.image import Snapshot

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class DirectoryDriver:
    """One directory for each number below `root`: the part of a driver that all of them share."""

    def __init__(self, root: Path, fs: Executor) -> None:
        self.root = root
        self._fs = fs
        self._trash = root / "trash"
        self._fillers = (root / "empty", root / "empty-too")  # stay empty, for overlays

    def prepare(self) -> None:
        """Make the fixed directories."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._trash.mkdir(exist_ok=True, mode=0o700)
        for filler in self._fillers:
            filler.mkdir(exist_ok=True)

    def volumes(self, number: int) -> Path:
        """`<number>/volumes`."""
        return self._path(number) / "volumes"

    def counted(self, number: int) -> Sequence[Path]:
        """The files and the volumes."""
        volumes = self.volumes(number)
        return [self._tree(number), *([volumes] if volumes.exists() else [])]

    def problem(self, layer: Snapshot) -> str:
        """Compare the files with the layer's row."""
        return content_problem(layer, self._tree(layer.number))

    def trash(self, number: int) -> None:
        """Rename into the trash."""
        with contextlib.suppress(FileNotFoundError):
            self._path(number).rename(self._trash / str(number))

    def empty_trash(self) -> None:
        """Delete what was renamed away."""
        for entry in self._trash.iterdir():
            try:
                remove_tree(entry)
            except OSError as exc:
                log.warning("trash_not_deleted", path=str(entry), error=str(exc))

    def sweep(self, known: frozenset[int]) -> None:
        """Delete the directories of other numbers, and the trash."""
        self.prepare()
        for entry in self.root.iterdir():
            if entry.name.isdigit() and int(entry.name) not in known:
                log.warning("orphan_removed", path=str(entry))
                self.trash(int(entry.name))
        self.empty_trash()

    def _path(self, number: int) -> Path:
        return self.root / str(number)

    def _tree(self, number: int) -> Path:
        return self._path(number) / "fs"


def let_through(bundle: Path, ids: MappedIds) -> None:
    """Let the namespace's root, but no other user, pass through a bundle's directory."""
    os.chown(bundle, -1, ids.gid)
    bundle.chmod(0o710)
