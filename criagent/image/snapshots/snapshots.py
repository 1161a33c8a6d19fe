# SPDX-License-Identifier: Apache-2.0
"""Snapshots as their users see them: rows in `store`, directories and mounts by a driver.

A row precedes its directory. Removal moves the directory to the trash, then deletes the row; the
trash is emptied in the background and at start.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path

import structlog

from criagent.base import faults
from criagent.base.aio import Background, run_in
from criagent.base.errors import (
    AgentError,
    CorruptError,
    ExhaustedError,
    NotFoundError,
    UnsupportedError,
)
from criagent.base.os_errors import of_the_agent
from criagent.image.snapshots.driver import (
    Capabilities,
    Counted,
    LayerPlace,
    MappedIds,
    MountPoint,
    SnapshotDriver,
    Taken,
)
from criagent.kernel import mount
from criagent.kernel.write_back import WriteBack
from criagent.model.image import Image, Snapshot
from criagent.store.snapshots import SnapshotStore

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Snapshots:
    """The snapshots in `store`, stored by `driver`; what it mounts is unmounted in `fs`."""

    def __init__(self, driver: SnapshotDriver, store: SnapshotStore, fs: Executor) -> None:
        self.store = store
        self._driver = driver
        self._fs = fs
        self._emptying = asyncio.Lock()  # two deletions of one tree would trip over each other
        self._emptier = Background("trash")
        self._more = False  # was renamed away since the emptier looked

    @property
    def root(self) -> Path:
        """A directory on their file system."""
        return self._driver.root

    @property
    def containers_root(self) -> Path:
        """A directory on the file system of writable layers and declared volumes."""
        return self._driver.containers_root

    @property
    def driver(self) -> str:
        """The driver's name."""
        return self._driver.name

    @property
    def capabilities(self) -> Capabilities:
        """What the driver can do."""
        return self._driver.capabilities

    async def prepare(self) -> None:
        """Make what the driver needs on disk; idempotent. Raises UnsupportedError."""
        await self._driver.prepare()

    @asynccontextmanager
    async def write_back(self) -> AsyncIterator[WriteBack]:
        """For `sync`, what is written to their file system within the block. Raises OSError."""
        with closing(WriteBack(self.root)) as written:
            await run_in(self._fs, written.open)
            yield written

    async def sync(self, written: WriteBack) -> None:
        """Make `written` durable. Raises OSError."""
        with ThreadPoolExecutor(1, "sync") as thread:  # on a busy disk this takes long
            await run_in(thread, written.sync)

    async def userns_problem(self, ids: MappedIds) -> str:
        """Why user namespaces cannot have these mounts. See `SnapshotDriver`."""
        return await self._driver.userns_problem(ids)

    async def create_layer(self, chain_id: str, *, parent: str, created_at_ns: int) -> Snapshot:
        """A new uncommitted layer over the layer `parent` ("" = it is the lowest).

        Raises AlreadyExistsError, NotFoundError for a layer that is not there, ExhaustedError.
        """
        below = self._below(parent)
        snapshot = await self.store.reserve(chain_id, parent=parent, created_at_ns=created_at_ns)
        async with self._over([parent]):
            await self._driver.create_layer(snapshot.number, below)
        return snapshot

    async def create_container(
        self, container_id: str, *, parent: str, created_at_ns: int, limit_bytes: int = 0
    ) -> Snapshot:
        """A new writable layer over the layer `parent` ("" = the image has none).

        It can grow by `limit_bytes`, 0 = without a limit. Raises as `create_layer`, and
        UnsupportedError for a limit that the driver can't keep.
        """
        below = self._below(parent)
        snapshot = await self.store.reserve(
            container_id, parent=parent, created_at_ns=created_at_ns
        )
        async with self._over([parent]):
            await self._driver.create_container(snapshot.number, below, limit_bytes)
        return snapshot

    @asynccontextmanager
    async def layer_place(
        self, layer: Snapshot, below: Sequence[str] | None
    ) -> AsyncIterator[LayerPlace]:
        """Where and over what a worker writes `layer`, within the block.

        `below` are the chain IDs below it, lowest first, all written; None when they are not.
        """
        numbers = None if below is None else self._written(below)
        async with self._driver.layer_place(layer.number, numbers) as place:
            yield place

    async def commit_layer(self, layer: Snapshot) -> Taken | None:
        """Give a layer that was written its final form; its row is committed with its image.

        What that takes on disk, None = what the worker found.
        """
        return await self._driver.commit_layer(layer.number)

    async def mount_container(self, snapshot: Snapshot, image: Image, at: MountPoint) -> None:
        """Mount the image's layers with the container's writable layer.

        Only the node's root can reach it by that path, and in a user namespace its root, which owns
        the files: there may be setuid programs among them. Raises NotFoundError when a layer is
        missing, AgentError.
        """
        chain = [layer.chain_id for layer in image.layers]
        below = self._committed(chain)
        try:
            async with self._over(chain):
                await self._driver.mount_container(snapshot.number, below, at)
        except OSError as exc:
            raise AgentError(f"{self._driver.name} of {image.id} at {at.path}: {exc}") from exc

    async def mount_image(self, top: str, at: MountPoint) -> None:
        """Mount the committed layers up to `top` ("" = none), read-only for everyone.

        Raises NotFoundError when a layer is missing, AgentError.
        """
        chain = self._chain(top)
        layers = self._committed(chain)
        try:
            async with self._over(chain):
                await self._driver.mount_image(layers, at)
        except OSError as exc:
            raise AgentError(f"{self._driver.name} of image volume {at.path}: {exc}") from exc

    async def unmount(self, target: Path) -> None:
        """Remove every mount at `target`; idempotent."""
        await run_in(self._fs, mount.detach, target)

    def volumes(self, snapshot: Snapshot) -> Path:
        """The directory for declared volumes beside a writable layer; it may not exist."""
        return self._driver.volumes(snapshot.number)

    def counted(self, snapshot: Snapshot, rootfs: Path) -> Counted:
        """What the usage of a writable layer is, which is mounted at `rootfs` if at all."""
        return self._driver.counted(snapshot.number, rootfs)

    def upper(self, snapshot: Snapshot) -> Path | None:
        """The upper directory of a writable layer, which has its changes and no more.

        None when the driver has none: the changes show in comparison with the image.
        """
        if not self.capabilities.upper_directories:
            return None
        return Path(self._driver.counted(snapshot.number, self.root).tops[0])

    def layer_tree(self, layer: Snapshot) -> AbstractAsyncContextManager[Path | None]:
        """The files of a layer, to be read within the block. See `SnapshotDriver`."""
        return self._driver.layer_tree(layer.number)

    async def problem(self, layer: Snapshot) -> str:
        """How a committed layer on disk differs from its row; reads all names."""
        return await self._driver.problem(layer)

    async def health(self) -> str:
        """Why the node must not get more pods, with the cure; "" = it may."""
        return await self._driver.health()

    def used_shares(self) -> Mapping[str, float]:
        """How full the driver's own store is, by part."""
        return self._driver.used_shares()

    async def facts(self) -> Mapping[str, str]:
        """What the driver tells `criagent storage info`."""
        return await self._driver.facts()

    async def remove(self, key: str) -> None:
        """Delete the snapshot; `empty_soon` or `empty_trash` frees its space. Idempotent."""
        snapshot = self.store.owned(key)
        if snapshot is None:
            return
        await self._driver.trash(snapshot.number)
        faults.reach("snapshot-remove:trash")
        await self.store.delete(key)

    async def empty_trash(self) -> None:
        """Delete what removals moved away; it is gone when this returns."""
        async with self._emptying:
            await self._driver.empty_trash()

    def empty_soon(self) -> None:
        """Empty the trash in the background."""
        self._more = True
        self._emptier.start(self._empty_all)

    async def close(self) -> None:
        """Finish the work of `empty_soon`, and what the driver has begun."""
        await self._emptier.wait()
        await self._driver.close()

    async def sweep(self) -> None:
        """After a crash: drop directories without a row and the trash. Rows stay."""
        known = frozenset(snapshot.number for snapshot in self.store.all())
        await self._driver.sweep(known)

    async def _empty_all(self) -> None:
        try:
            while self._more:
                self._more = False
                await self.empty_trash()
        except OSError as exc:
            log.warning("trash_not_deleted", path=str(self.root / "trash"), error=str(exc))

    @asynccontextmanager
    async def _over(self, chain: Sequence[str]) -> AsyncIterator[None]:
        """For a block that uses the layers `chain`: if it fails since one of them is damaged, that
        is what it says. Raises CorruptError for that.
        """
        try:
            yield
        except (OSError, AgentError) as exc:
            if isinstance(exc, ExhaustedError | UnsupportedError | CorruptError):
                raise
            if isinstance(exc, OSError) and of_the_agent(exc):
                raise
            for layer in map(self.store.get, chain):
                if layer is None or not layer.committed:
                    continue
                if problem := await self._driver.problem(layer):
                    raise _damaged(layer, problem) from exc
            raise

    def _below(self, parent: str) -> int | None:
        """The number of the layer `parent`, None for "" and for one that is yet to be made."""
        below = self.store.get(parent)
        if parent and below is None and not self.capabilities.settles:
            raise _not_unpacked(parent)
        return None if below is None else below.number

    def _chain(self, top: str) -> list[str]:
        """Chain IDs of the layers up to `top`, lowest first; none for ""."""
        found = []
        while top:
            found.append(top)
            snapshot = self.store.get(top)
            top = "" if snapshot is None else snapshot.parent
        return found[::-1]

    def _written(self, chain: Sequence[str]) -> list[int]:
        """Numbers of the layers `chain` (lowest first) that have a row, topmost first."""
        found = map(self.store.get, reversed(chain))
        return [snapshot.number for snapshot in found if snapshot is not None]

    def _committed(self, chain: Sequence[str]) -> list[int]:
        """Numbers of the committed layers `chain` (lowest first), topmost first."""
        numbers = []
        for chain_id in reversed(chain):
            snapshot = self.store.get(chain_id)
            if snapshot is None or not snapshot.committed:
                raise _not_unpacked(chain_id)
            numbers.append(snapshot.number)
        return numbers


def _not_unpacked(chain_id: str) -> NotFoundError:
    return NotFoundError(
        f"layer {chain_id} is not unpacked; run `criagent image fsck --repair`, "
        "then pull the image again"
    )


def _damaged(layer: Snapshot, problem: str) -> CorruptError:
    return CorruptError(
        f"layer {layer.key} is damaged: {problem}; run `criagent image fsck --repair`, then pull "
        "the image again"
    )
