# SPDX-License-Identifier: Apache-2.0
"""What drivers that store snapshots as trees of files share: `<root>/<number>/{fs,volumes}`.

With `storage.containers_root` the writable layers are below that directory, on a file system of
their own. Removal renames into `trash` beside them first, so it needs no space and a crash leaves
nothing but trash.
"""

from __future__ import annotations

import abc
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from criagent.base.aio import run_in
from criagent.base.errors import UnavailableError, UnsupportedError
from criagent.config.storage_section import Storage
from criagent.image.blobs import disk_full
from criagent.image.snapshots.content_problem import content_problem
from criagent.image.snapshots.driver import Counted, MappedIds, Taken
from criagent.image.snapshots.numbers import split
from criagent.kernel.trees import remove_tree
from criagent.model.image import Snapshot

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class DirectoryDriver(abc.ABC):
    """One directory for each number below `root`: the part of a driver that all of them share."""

    def __init__(self, root: Path, section: Storage, fs: Executor) -> None:
        self.root = root
        self._section = section
        self._fs = fs
        own = section.containers_root
        self.containers_root = Path(own) / root.name if own else root
        self._tops = (root,) if self.containers_root == root else (root, self.containers_root)
        self._fillers = (root / "empty", root / "empty-too")  # stay empty, for overlays

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Of the driver itself."""

    async def prepare(self) -> None:
        """Make the fixed directories."""
        await run_in(self._fs, self._prepare)

    async def close(self) -> None:  # noqa: B027 - most drivers have nothing to end
        """There is nothing to end."""

    async def commit_layer(self, number: int) -> Taken | None:
        """Its files are its final form."""
        return None

    async def health(self) -> str:
        """Whether the directories are there; whether there is space is the kubelet's question."""
        gone = [top for top in self._tops if not await run_in(self._fs, top.exists)]
        return f"{gone[0]} is gone; mount its file system again" if gone else ""

    def used_shares(self) -> Mapping[str, float]:
        """There is no other store."""
        return {}

    async def facts(self) -> Mapping[str, str]:
        """Nothing but what all file systems have."""
        return {}

    def _prepare(self) -> None:
        for top in self._tops:
            top.mkdir(parents=True, exist_ok=True, mode=0o700)
            (top / "trash").mkdir(exist_ok=True, mode=0o700)
        for filler in self._fillers:
            filler.mkdir(exist_ok=True)

    def volumes(self, number: int) -> Path:
        """`<number>/volumes`."""
        return self._container(number) / "volumes"

    def counted(self, number: int, rootfs: Path) -> Counted:
        """The files and the volumes."""
        volumes = self.volumes(number)
        return Counted(tops=[self._upper(number), *([volumes] if volumes.exists() else [])])

    @asynccontextmanager
    async def layer_tree(self, number: int) -> AsyncIterator[Path | None]:
        """Its directory."""
        yield self._tree(number)

    async def problem(self, layer: Snapshot) -> str:
        """Compare the files with the layer's row."""
        return await run_in(self._fs, content_problem, layer, self._tree(layer.number))

    async def trash(self, number: int) -> None:
        """Rename into the trash."""
        await run_in(self._fs, self._trash_one, number)

    def _trash_one(self, number: int) -> None:
        for top in self._tops:
            with contextlib.suppress(FileNotFoundError):
                (top / str(number)).rename(top / "trash" / str(number))

    async def empty_trash(self) -> None:
        """Delete what was renamed away."""
        await run_in(self._fs, self._empty_trash)

    def _empty_trash(self) -> None:
        for top in self._tops:
            for entry in (top / "trash").iterdir():
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
        for top in self._tops:
            for name in os.listdir(top):
                if name.isdigit() and int(name) not in known:
                    log.warning("orphan_removed", path=str(top / name))
                    self._trash_one(int(name))
        self._empty_trash()

    def _path(self, number: int) -> Path:
        store, own = split(number)
        if store:
            return self._section.additional_stores[store - 1] / "snapshots" / str(own)
        return self.root / str(own)

    def _tree(self, number: int) -> Path:
        return self._path(number) / "fs"

    def _container(self, number: int) -> Path:
        """The directory of a writable layer."""
        return self.containers_root / str(number)

    def _upper(self, number: int) -> Path:
        """The files of a writable layer."""
        return self._container(number) / "fs"

    def _adopt(self, directory: Path, limit_bytes: int) -> None:
        """Prepare the limit of a new writable layer, whose directory is empty."""
        no_limit(self.name, limit_bytes)

    def _make_container(self, number: int, limit_bytes: int, *beside: str) -> None:
        """An empty writable layer, and empty directories beside its files."""
        directory = self._container(number)
        with disk_full(self.containers_root):
            try:
                directory.mkdir()
            except FileNotFoundError as exc:
                raise UnavailableError(
                    f"{self.containers_root} is gone; mount its file system again"
                ) from exc
            self._adopt(directory, limit_bytes)
            upper = self._upper(number)
            upper.mkdir()
            upper.chmod(0o755)  # the umask does not apply: this is the image's "/"
            for name in beside:
                (directory / name).mkdir()


def no_limit(driver: str, limit_bytes: int, why: str = "") -> None:
    """Raises UnsupportedError for a limit, which `driver` can't keep; `why` has the cure."""
    if limit_bytes:
        why = why or "set no limit, or choose another storage.driver"
        raise UnsupportedError(
            f"the storage driver {driver} cannot limit the size of a writable layer here: {why}"
        )


def let_through(bundle: Path, ids: MappedIds) -> None:
    """Let the namespace's root, but no other user, pass through a bundle's directory."""
    os.chown(bundle, -1, ids.gid)
    bundle.chmod(0o710)
