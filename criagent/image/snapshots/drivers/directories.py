# SPDX-License-Identifier: Apache-2.0
"""What drivers that store snapshots as trees of files share: `<root>/<number>/{fs,volumes}`.

Removal renames into `<root>/trash` first, so it needs no space and a crash leaves nothing but
trash.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path

import structlog

from criagent.base.aio import run_in
from criagent.base.errors import UnsupportedError
from criagent.config.storage_section import Storage
from criagent.image.snapshots.content_problem import content_problem
from criagent.image.snapshots.driver import Counted, MappedIds, Taken
from criagent.image.snapshots.numbers import split
from criagent.kernel.trees import remove_tree
from criagent.model.image import Snapshot

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class DirectoryDriver:
    """One directory for each number below `root`: the part of a driver that all of them share."""

    def __init__(self, root: Path, section: Storage, fs: Executor) -> None:
        self.root = root
        self._section = section
        self._fs = fs
        self._trash = root / "trash"
        self._fillers = (root / "empty", root / "empty-too")  # stay empty, for overlays

    async def prepare(self) -> None:
        """Make the fixed directories."""
        await run_in(self._fs, self._prepare)

    async def close(self) -> None:
        """There is nothing to end."""

    async def commit_layer(self, number: int) -> Taken | None:
        """Its files are its final form."""
        return None

    async def health(self) -> str:
        """Whether there is space is the kubelet's question."""
        return ""

    def used_shares(self) -> Mapping[str, float]:
        """There is no other store."""
        return {}

    async def facts(self) -> Mapping[str, str]:
        """Nothing but what all file systems have."""
        return {}

    def _prepare(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._trash.mkdir(exist_ok=True, mode=0o700)
        for filler in self._fillers:
            filler.mkdir(exist_ok=True)

    def volumes(self, number: int) -> Path:
        """`<number>/volumes`."""
        return self._path(number) / "volumes"

    def counted(self, number: int, rootfs: Path) -> Counted:
        """The files and the volumes."""
        volumes = self.volumes(number)
        return Counted(tops=[self._tree(number), *([volumes] if volumes.exists() else [])])

    async def problem(self, layer: Snapshot) -> str:
        """Compare the files with the layer's row."""
        return await run_in(self._fs, content_problem, layer, self._tree(layer.number))

    async def trash(self, number: int) -> None:
        """Rename into the trash."""
        await run_in(self._fs, self._trash_one, number)

    def _trash_one(self, number: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path(number).rename(self._trash / str(number))

    async def empty_trash(self) -> None:
        """Delete what was renamed away."""
        await run_in(self._fs, self._empty_trash)

    def _empty_trash(self) -> None:
        for entry in self._trash.iterdir():
            try:
                self._delete(entry)
            except OSError as exc:
                log.warning("trash_not_deleted", path=str(entry), error=str(exc))

    def _delete(self, entry: Path) -> None:
        """Delete one entry of the trash, some of which may be gone. Raises OSError."""
        remove_tree(entry)

    async def sweep(self, known: frozenset[int]) -> None:
        """Delete the directories of other numbers, and the trash."""
        await run_in(self._fs, self._sweep, known)

    def _sweep(self, known: frozenset[int]) -> None:
        self._prepare()
        for entry in self.root.iterdir():
            if entry.name.isdigit() and int(entry.name) not in known:
                log.warning("orphan_removed", path=str(entry))
                self._trash_one(int(entry.name))
        self._empty_trash()

    def _path(self, number: int) -> Path:
        store, own = split(number)
        if store:
            return self._section.additional_stores[store - 1] / "snapshots" / str(own)
        return self.root / str(own)

    def _tree(self, number: int) -> Path:
        return self._path(number) / "fs"


def no_limit(driver: str, limit_bytes: int) -> None:
    """Raises UnsupportedError for a limit, which `driver` can't keep."""
    if limit_bytes:
        raise UnsupportedError(
            f"the storage driver {driver} cannot limit the size of a writable layer on this file "
            "system; set no limit, or choose another storage.driver"
        )


def let_through(bundle: Path, ids: MappedIds) -> None:
    """Let the namespace's root, but no other user, pass through a bundle's directory."""
    os.chown(bundle, -1, ids.gid)
    bundle.chmod(0o710)
