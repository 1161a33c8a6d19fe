# SPDX-License-Identifier: Apache-2.0
"""Snapshots for overlayfs: `snapshots/<number>/{fs,work}`.

A committed layer's `fs` is a lower directory, a container's is its upper directory. A row precedes
its directory; removal renames into `snapshots/trash` first, so it needs no space and a crash leaves
nothing but trash, which is emptied in the background and at start.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import structlog

from criagent.base import faults
from criagent.base.aio import Background, run_in
from criagent.base.errors import AgentError, NotFoundError
from criagent.image.blobs import disk_full
from criagent.kernel import idmap, mount
from criagent.kernel.trees import remove_tree
from criagent.model.image import Image, Snapshot
from criagent.store.snapshots import SnapshotStore

_DAMAGED = "damaged:"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MappedIds:
    """For a container in a user namespace: its pin, its root's ids on the node, and where the
    layers may be attached while the overlay is mounted."""

    userns: Path
    uid: int
    gid: int
    lower_layers: Path


class OverlaySnapshots:
    """Directories and mounts of the snapshots in `store`, below `root`."""

    def __init__(self, root: Path, store: SnapshotStore, fs: Executor) -> None:
        self.root = root
        self.store = store
        self._fs = fs
        self._empty = root / "empty"
        self._fillers = (self._empty, root / "empty-too")
        self._emptying = asyncio.Lock()  # two deletions of one tree would trip over each other
        self._emptier = Background("trash")
        self._more = False  # was renamed away since the emptier looked

    def prepare(self) -> None:
        """Make the fixed directories; idempotent."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.root / "trash").mkdir(exist_ok=True, mode=0o700)
        for filler in self._fillers:
            filler.mkdir(exist_ok=True)

    def tree(self, snapshot: Snapshot) -> Path:
        """The layer's files, or the container's upper directory."""
        return self.root / str(snapshot.number) / "fs"

    def lower_layers(self, chain: Sequence[str]) -> list[Path]:
        """Directories of the committed layers `chain` (lowest first), topmost first.

        Raises NotFoundError when a layer is not there.
        """
        paths = []
        for chain_id in reversed(chain):
            snapshot = self.store.get(chain_id)
            if snapshot is None or not snapshot.committed:
                raise NotFoundError(
                    f"layer {chain_id} is not unpacked; run `criagent image fsck --repair`, "
                    "then pull the image again"
                )
            paths.append(self.tree(snapshot))
        return paths

    async def create(self, key: str, *, parent: str, created_at_ns: int) -> Snapshot:
        """A new uncommitted snapshot with its empty directories. Raises AlreadyExistsError."""
        snapshot = await self.store.reserve(key, parent=parent, created_at_ns=created_at_ns)
        await run_in(self._fs, self._make, snapshot)
        return snapshot

    async def mount_container(
        self,
        snapshot: Snapshot,
        image: Image,
        target: Path,
        ids: MappedIds | None = None,
        label: str = "",
    ) -> None:
        """Mount the image's layers with the container's upper directory at `target`.

        Only the node's root can reach it by that path, and with `ids` the root of that user
        namespace, which owns the files: there may be setuid programs among them.
        """
        lower_layers = self.lower_layers([layer.chain_id for layer in image.layers]) or [
            self._empty
        ]
        upper = self.tree(snapshot)

        def call() -> None:
            target.parent.mkdir(exist_ok=True, mode=0o700)
            target.mkdir(exist_ok=True)
            try:
                if ids is not None:
                    _give(target.parent, upper, ids)
                with self._seen_as(lower_layers, ids) as seen:
                    mount.overlay(seen, upper, upper.with_name("work"), target, label)
            except OSError as exc:
                raise AgentError(f"overlay of {image.id} at {target}: {exc}") from exc

        await run_in(self._fs, call)

    def chain(self, top: str) -> list[str]:
        """Chain IDs of the layers up to `top`, lowest first; none for ""."""
        found = []
        while top:
            found.append(top)
            snapshot = self.store.get(top)
            top = "" if snapshot is None else snapshot.parent
        return found[::-1]

    async def mount_image(
        self, top: str, target: Path, ids: MappedIds | None = None, label: str = ""
    ) -> None:
        """Mount the committed layers up to `top` ("" = none) at `target`, read-only for everyone.

        Raises NotFoundError when a layer is missing, AgentError.
        """
        lower_layers = self.lower_layers(self.chain(top))
        lower_layers += self._fillers[
            : max(0, 2 - len(lower_layers))
        ]  # overlayfs wants two without an upper

        def call() -> None:
            target.mkdir(parents=True, exist_ok=True)
            try:
                with self._seen_as(lower_layers, ids) as seen:
                    mount.overlay(seen, None, None, target, label)
            except OSError as exc:
                raise AgentError(f"overlay of image volume {target}: {exc}") from exc

        await run_in(self._fs, call)

    async def unmount(self, target: Path) -> None:
        """Remove every mount at `target`; idempotent."""
        await run_in(self._fs, mount.detach, target)

    async def remove(self, key: str) -> None:
        """Delete the snapshot; `empty_soon` or `empty_trash` frees its space. Idempotent."""
        snapshot = self.store.get(key)
        if snapshot is None:
            return
        await run_in(self._fs, self._trash, snapshot.number)
        faults.reach("snapshot-remove:trash")
        await self.store.delete(key)

    async def empty_trash(self) -> None:
        """Delete what removals renamed away; it is gone when this returns."""
        async with self._emptying:
            await run_in(self._fs, self._empty_trash)

    def empty_soon(self) -> None:
        """Empty the trash in the background."""
        self._more = True
        self._emptier.start(self._empty_all)

    async def close(self) -> None:
        """Finish the work of `empty_soon`."""
        await self._emptier.wait()

    async def _empty_all(self) -> None:
        try:
            while self._more:
                self._more = False
                await self.empty_trash()
        except OSError as exc:
            log.warning("trash_not_deleted", path=str(self.root / "trash"), error=str(exc))

    async def sweep(self) -> None:
        """After a crash: drop directories without a row and the trash. Rows stay."""
        await run_in(self._fs, self._sweep, {str(s.number) for s in self.store.all()})

    # The rest runs in the fs executor.

    @contextlib.contextmanager
    def _seen_as(
        self, lower_layers: Sequence[Path], ids: MappedIds | None
    ) -> Iterator[Sequence[Path]]:
        """`lower_layers` as lowerdirs of an overlay; with `ids`, idmapped to that user namespace.

        Linux 6.12 takes no detached mount as a lower, so all layers are attached at once, by the
        directory that holds them, until the overlay has a clone of each.
        """
        if ids is None:
            yield lower_layers
            return
        ids.lower_layers.mkdir(exist_ok=True, mode=0o700)
        userns = os.open(ids.userns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with idmap.idmapped(self.root, userns, readonly=True) as tree:
                idmap.attach(tree, ids.lower_layers)
        finally:
            os.close(userns)
        faults.reach("container-create:idmapped-layers")
        try:
            yield [ids.lower_layers / lower.relative_to(self.root) for lower in lower_layers]
        finally:
            mount.detach(ids.lower_layers)
        ids.lower_layers.rmdir()

    def _make(self, snapshot: Snapshot) -> None:
        with disk_full(self.root):
            self.tree(snapshot).mkdir(parents=True, mode=0o755)
            self.tree(snapshot).chmod(0o755)  # the umask does not apply: this is the image's "/"
            self.tree(snapshot).with_name("work").mkdir()

    def _trash(self, number: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.root / str(number)).rename(self.root / "trash" / str(number))

    def _empty_trash(self) -> None:
        for entry in (self.root / "trash").iterdir():
            try:
                remove_tree(entry)
            except OSError as exc:
                log.warning("trash_not_deleted", path=str(entry), error=str(exc))

    def _sweep(self, known: set[str]) -> None:
        self.prepare()
        for entry in self.root.iterdir():
            if entry.name.isdigit() and entry.name not in known:
                log.warning("orphan_removed", path=str(entry))
                self._trash(int(entry.name))
        self._empty_trash()


def damaged_key(snapshot: Snapshot) -> str:
    """The key of a layer that was replaced as damaged, for as long as containers use it."""
    return f"{_DAMAGED}{snapshot.number}:{snapshot.key}"


def damaged_origin(key: str) -> str:
    """The chain ID that such a layer had; "" for any other key."""
    return key.removeprefix(_DAMAGED).partition(":")[2] if key.startswith(_DAMAGED) else ""


def _give(bundle: Path, upper: Path, ids: MappedIds) -> None:
    """Let the namespace's root own the writable layer and pass through the bundle's directory."""
    os.chown(bundle, -1, ids.gid)
    bundle.chmod(0o710)
    for directory in (upper, upper.with_name("work")):
        os.chown(directory, ids.uid, ids.gid)
