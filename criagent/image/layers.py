"""Layers of one image into committed snapshots: side by side, then settled bottom-up.

A layer that several images share is unpacked once: its chain ID names the snapshot, and a lock per
chain ID makes the second pull wait for the first. Snapshots are committed with the image, by one
transaction, after everything was synced; what a crash leaves uncommitted is thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from criagent.aio import KeyedLocks, finish
from criagent.image.blobs import BlobFiles
from criagent.image.digest import parse_digest
from criagent.image.snapshots.overlay import OverlaySnapshots
from criagent.image.unpack import LayerFile, NeedsLowers, Unpacked, UnpackWorkers
from criagent.model import Layer, Snapshot

Fetch = Callable[[Layer], Awaitable[None]]
Moved = Callable[[int], None]


@dataclass(slots=True)
class _Written:
    """A layer on its way: `result` is None when it must be done through its lower layers."""

    layer: Layer
    snapshot: Snapshot
    result: Unpacked | None


class LayerUnpacker:
    """Snapshots of layers, by `workers`."""

    def __init__(
        self,
        *,
        snapshots: OverlaySnapshots,
        files: BlobFiles,
        workers: UnpackWorkers,
        now_ns: Callable[[], int],
    ) -> None:
        self._snapshots = snapshots
        self._files = files
        self._workers = workers
        self._now_ns = now_ns
        self._locks = KeyedLocks()
        self._wanted: Counter[str] = Counter()

    def wanted(self, chain_id: str) -> bool:
        """Whether a pull counts on this layer."""
        return self._wanted[chain_id] > 0

    def has(self, layer: Layer) -> bool:
        """Whether the layer is unpacked and committed."""
        snapshot = self._snapshots.store.get(layer.chain_id)
        return snapshot is not None and snapshot.committed

    def complete(self, layers: Sequence[Layer]) -> bool:
        """Whether all of them are."""
        return all(self.has(layer) for layer in layers)

    @asynccontextmanager
    async def holding(self, chain_ids: Iterable[str]) -> AsyncIterator[None]:
        """Keep these layers as they are for the block: nobody unpacks or removes them."""
        async with contextlib.AsyncExitStack() as stack:
            for chain_id in sorted(set(chain_ids)):
                await stack.enter_async_context(self._locks.hold(chain_id))
            yield

    @asynccontextmanager
    async def unpacked(
        self, layers: Sequence[Layer], fetch: Fetch, moved: Moved
    ) -> AsyncIterator[list[Snapshot]]:
        """Rows to commit within the block, for the layers that were not unpacked before.

        Their content is on disk. `fetch` brings the blob of a layer. Raises CorruptError,
        ExhaustedError and what `fetch` raises; when anything fails, the block included, nothing
        of this call is left.
        """
        keys = [layer.chain_id for layer in layers]
        self._wanted.update(keys)
        try:
            async with self.holding(keys), self._missing(layers, fetch, moved) as done:
                yield done
        finally:
            self._wanted.subtract(keys)
            self._wanted += Counter()  # forgets the zeros

    @asynccontextmanager
    async def _missing(
        self, layers: Sequence[Layer], fetch: Fetch, moved: Moved
    ) -> AsyncIterator[list[Snapshot]]:
        missing = [layer for layer in layers if not self.has(layer)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._write(layer, layers, fetch, moved)) for layer in missing
                ]
            done = [await self._settle(task.result(), layers, moved) for task in tasks]
            if done:
                await self._workers.sync(self._snapshots.root)
            yield done
        except BaseException as failure:
            for layer in missing:
                await finish(self._discard(layer))
            if isinstance(failure, BaseExceptionGroup):
                raise _first(failure) from None
            raise

    async def _write(
        self, layer: Layer, layers: Sequence[Layer], fetch: Fetch, moved: Moved
    ) -> _Written:
        await self._discard(layer)  # what an earlier try left
        at = layers.index(layer)
        parent = layers[at - 1].chain_id if at else ""
        snapshot = await self._snapshots.create(
            layer.chain_id, parent=parent, created_at_ns=self._now_ns()
        )
        await fetch(layer)
        try:
            result = await self._extract(layer, snapshot, None if at else [], moved)
        except NeedsLowers:
            return _Written(layer, snapshot, None)
        return _Written(layer, snapshot, result)

    async def _settle(self, written: _Written, layers: Sequence[Layer], moved: Moved) -> Snapshot:
        """Finish a layer once everything below it is finished."""
        layer, snapshot, result = written.layer, written.snapshot, written.result
        below = layers[: layers.index(layer)]
        lowers = [
            self._snapshots.tree(found)
            for lower in reversed(below)
            if (found := self._snapshots.store.get(lower.chain_id)) is not None
        ]
        if result is not None and result.unsettled:
            try:
                await self._workers.settle(self._snapshots.tree(snapshot), lowers)
            except NeedsLowers:
                result = None
        if result is None:
            await self._snapshots.remove(layer.chain_id)
            snapshot = await self._snapshots.create(
                layer.chain_id, parent=snapshot.parent, created_at_ns=self._now_ns()
            )
            result = await self._extract(layer, snapshot, lowers, moved)
        return dataclasses.replace(
            snapshot,
            committed=True,
            diff_id=layer.diff_id,
            used_bytes=result.used_bytes,
            inodes=result.inodes,
        )

    async def _extract(
        self, layer: Layer, snapshot: Snapshot, lowers: Sequence[Path] | None, moved: Moved
    ) -> Unpacked:
        file = LayerFile(
            blob=self._files.path(parse_digest(layer.digest)),
            size=layer.size,
            digest=layer.digest,
            diff_id=layer.diff_id,
        )
        return await self._workers.extract(file, self._snapshots.tree(snapshot), lowers, moved)

    async def _discard(self, layer: Layer) -> None:
        snapshot = self._snapshots.store.get(layer.chain_id)
        if snapshot is not None and not snapshot.committed:
            await self._snapshots.remove(layer.chain_id)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that ended a task group; cancellations follow from it."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
