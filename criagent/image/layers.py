# SPDX-License-Identifier: Apache-2.0
"""Layers of images into committed snapshots: side by side, then settled bottom-up.

A layer that several images share is unpacked once: its chain ID names the snapshot. All pulls that
claim the layer share it. Its lock is held only while that layer is written or settled, never while
a registry is awaited, so a pull that progresses does not wait for one that does not.

    not there ──extract──▶ written ──settle──▶ settled ──sync, commit with an image──▶ committed
         ▲                    └─────────────────────┴── the last claim ends: discarded
         └── removed by a collection, when no image, container or claim needs it

With a storage driver that extracts in place, a layer needs the finished one below it: they are
written bottom-up, each once it has arrived, and there is nothing to settle.

Snapshots are committed with the first image that has them, by one transaction, after everything was
synced. What a crash leaves uncommitted is thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from criagent.base import faults
from criagent.base.aio import KeyedLocks, alongside, finish, staged
from criagent.base.errors import CorruptError, UnavailableError
from criagent.image.blobs import BlobFiles
from criagent.image.claims import Claims
from criagent.image.early_sync import EarlySync
from criagent.image.layer_trial import LayerTrial, layer_file
from criagent.image.snapshots.content_count import ContentCount
from criagent.image.snapshots.snapshots import Snapshots
from criagent.image.unpack.compare import Differences
from criagent.image.unpack.workers import NeedsLowerLayers, Unpacked, UnpackWorkers
from criagent.kernel.write_back import WriteBack
from criagent.model.image import Layer, Snapshot

Fetch = Callable[[Layer], Awaitable[None]]
Received = Callable[[int], None]


@dataclass(slots=True)
class _Fresh:
    """A layer that no image has committed yet; changed only under its lock."""

    snapshot: Snapshot
    written: bool = False
    result: Unpacked | None = None  # of a written one: None = it is done through its lower layers
    content: ContentCount | None = None  # None = not counted yet
    settled: Snapshot | None = None
    finished: bool = False  # it has its final form
    doubtful: bool = False  # a sync failed that covered it


class LayerUnpacker:
    """Snapshots of layers, by `workers`."""

    def __init__(
        self,
        *,
        snapshots: Snapshots,
        files: BlobFiles,
        workers: UnpackWorkers,
        now_ns: Callable[[], int],
    ) -> None:
        self._snapshots = snapshots
        self._files = files
        self._workers = workers
        self._now_ns = now_ns
        self._claims = Claims()
        self._locks = KeyedLocks("layer")
        self._fresh: dict[str, _Fresh] = {}

    def has(self, layer: Layer) -> bool:
        """Whether the layer is unpacked and committed."""
        snapshot = self._snapshots.store.get(layer.chain_id)
        return snapshot is not None and snapshot.committed

    def lent(self, layer: Layer) -> bool:
        """Whether it is the layer of an additional store."""
        return self.has(layer) and self._snapshots.store.owned(layer.chain_id) is None

    def removing(self, chain_id: str) -> AbstractAsyncContextManager[bool]:
        """Whether a layer may be removed within the block: no pull counts on it."""
        return self._claims.removing(chain_id)

    async def differences(self, layers: Sequence[Layer]) -> Differences:
        """How the topmost of `layers`, which are all committed, differs from its blob.

        Not at all for a driver whose `Snapshots.problem` reads every byte. Raises AgentError and
        OSError when it cannot be unpacked again to be compared.
        """
        async with self._claims.hold([layer.chain_id for layer in layers]):
            trial = LayerTrial(self._snapshots, self._files, self._workers, self._now_ns())
            return await trial.differences(layers)

    @asynccontextmanager
    async def unpacked(
        self, layers: Sequence[Layer], fetch: Fetch, received: Received
    ) -> AsyncIterator[list[Snapshot]]:
        """Rows to commit within the block, for the layers that are not committed.

        Their content is on disk. `fetch` brings the blob of a layer. Raises CorruptError,
        ExhaustedError and what `fetch` raises; when anything fails, the block included, nothing is
        left that only this call needed.
        """
        keys = [layer.chain_id for layer in layers]
        try:
            async with self._claims.hold(keys):
                yield await self._made(layers, fetch, received)
        finally:
            await finish(self._release(keys))

    async def _made(
        self, layers: Sequence[Layer], fetch: Fetch, received: Received
    ) -> list[Snapshot]:
        missing = [layer for layer in layers if not self.has(layer)]
        if not missing:
            return []
        async with self._snapshots.write_back() as written:
            early = EarlySync(self._snapshots, written, received)
            async with alongside(self._doubt(missing, early)):
                await self._write_all(missing, layers, fetch, early.received)
            return await self._durable(missing, written)

    async def _doubt(self, layers: Sequence[Layer], early: EarlySync) -> None:
        """After a failed sync no pull that shares them commits what may have been lost."""
        await early.until_failure()
        for layer in layers:
            if (fresh := self._fresh.get(layer.chain_id)) is not None:
                fresh.doubtful = True

    async def _write_all(
        self, missing: Sequence[Layer], layers: Sequence[Layer], fetch: Fetch, received: Received
    ) -> None:
        try:
            if self._snapshots.capabilities.settles:
                async with asyncio.TaskGroup() as group:
                    for layer in missing:
                        group.create_task(self._write(layer, layers, fetch, received))
                for layer in missing:
                    await self._settle(layer, layers, received)
            else:
                await self._write_upwards(missing, layers, fetch, received)
        except BaseExceptionGroup as failures:
            raise _first(failures) from None

    async def _write_upwards(
        self, missing: Sequence[Layer], layers: Sequence[Layer], fetch: Fetch, received: Received
    ) -> None:
        """Extract each layer over the finished one below it, while those above are fetched."""

        async def arrival(layer: Layer) -> None:
            await fetch(layer)

        async with asyncio.TaskGroup() as group:
            arrivals = [group.create_task(arrival(layer)) for layer in missing]
            for layer, arriving in zip(missing, arrivals, strict=True):
                await arriving
                await self._settle(layer, layers, received)
                faults.reach("pull-image:extracted")

    async def _write(
        self, layer: Layer, layers: Sequence[Layer], fetch: Fetch, received: Received
    ) -> None:
        """Fetch the layer, and extract it unless another pull has."""
        async with self._locks.hold(layer.chain_id):
            if not self.has(layer):
                await self._reserved(layer, layers)
        await fetch(layer)
        async with self._locks.hold(layer.chain_id):
            if self.has(layer):
                return
            fresh = await self._reserved(layer, layers)
            if not fresh.written:
                below: list[str] | None = None if fresh.snapshot.parent else []
                await self._extract(layer, fresh, below, received)
                faults.reach("pull-image:extracted")

    async def _settle(self, layer: Layer, layers: Sequence[Layer], received: Received) -> None:
        """Finish a layer once everything below it is finished."""
        async with self._locks.hold(layer.chain_id):
            if self.has(layer):
                return
            fresh = await self._reserved(layer, layers)
            if fresh.settled is not None:
                return
            below = [lower.chain_id for lower in layers[: layers.index(layer)]]
            if fresh.result is not None and fresh.result.unsettled:
                written, fresh.result = fresh.result, None  # a half-settled layer is written again
                with contextlib.suppress(NeedsLowerLayers):
                    async with self._snapshots.layer_place(fresh.snapshot, below) as place:
                        await self._workers.settle(place)
                    fresh.result = written
            if fresh.result is None:
                if fresh.written:
                    await self._discard(layer.chain_id)
                    fresh = await self._reserved(layer, layers)
                await self._extract(layer, fresh, below, received)
            result = fresh.result
            if result is None:
                raise CorruptError(f"layer {layer.digest} leads through a dangling link")
            fresh.settled = dataclasses.replace(
                fresh.snapshot,
                committed=True,
                diff_id=layer.diff_id,
                used_bytes=result.used_bytes,
                inodes=result.inodes,
            )
            if not self._snapshots.capabilities.settles:  # the next layer begins with it
                try:
                    await self._finish(fresh)
                except BaseException:
                    await finish(self._discard(layer.chain_id))
                    raise

    async def _durable(self, layers: Sequence[Layer], written: WriteBack) -> list[Snapshot]:
        """Sync what is not committed, and count it meanwhile; the rows to commit.

        Under the locks of those layers, from the lowest on: what another pull finishes is not
        counted.
        """
        async with contextlib.AsyncExitStack() as stack:
            for layer in layers:
                await stack.enter_async_context(self._locks.hold(layer.chain_id))
            pending = [self._fresh[layer.chain_id] for layer in layers if not self.has(layer)]
            if not pending:
                return []
            doubtful = any(fresh.doubtful for fresh in pending)
            if doubtful and not written.failed:  # the kernel may not tell this pull
                raise UnavailableError(
                    "another pull could not sync the layers that it shares with this one; pull "
                    "again, and check dmesg for errors of the disk"
                )
            unfinished = [fresh for fresh in pending if not fresh.finished]
            uncounted = [fresh for fresh in unfinished if fresh.content is None]
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._sync(pending, written))
                    if uncounted:
                        group.create_task(self._count(uncounted))
            except BaseExceptionGroup as failures:
                raise _first(failures) from None
            for fresh in unfinished:
                await self._finish(fresh)
        return [_row(fresh) for fresh in pending]

    async def _sync(self, layers: Sequence[_Fresh], written: WriteBack) -> None:
        try:
            with staged(str(self._snapshots.root), "sync to disk"):
                await self._snapshots.sync(written)
        finally:
            for fresh in layers:
                fresh.doubtful = written.failed

    async def _count(self, layers: Sequence[_Fresh]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            trees = [
                (
                    await stack.enter_async_context(
                        self._snapshots.layer_place(fresh.snapshot, None)
                    )
                ).root
                for fresh in layers
            ]
            counts = await self._workers.count(trees)
        for fresh, count in zip(layers, counts, strict=True):
            fresh.content = count

    async def _finish(self, fresh: _Fresh) -> None:
        """Give a settled layer its final form, once. Under its lock."""
        if fresh.finished or fresh.settled is None:
            return
        taken = await self._snapshots.commit_layer(fresh.snapshot)
        if taken is not None:
            fresh.settled = dataclasses.replace(
                fresh.settled, used_bytes=taken.used_bytes, inodes=taken.inodes
            )
        fresh.finished = True

    async def _reserved(self, layer: Layer, layers: Sequence[Layer]) -> _Fresh:
        """The layer's uncommitted snapshot, a new one when there is none; under its lock."""
        key = layer.chain_id
        if (fresh := self._fresh.get(key)) is not None:
            return fresh
        await self._discard(key)  # the remains of a failed removal
        at = layers.index(layer)
        snapshot = await self._snapshots.create_layer(
            key, parent=layers[at - 1].chain_id if at else "", created_at_ns=self._now_ns()
        )
        fresh = self._fresh[key] = _Fresh(snapshot)
        return fresh

    async def _extract(
        self, layer: Layer, fresh: _Fresh, below: Sequence[str] | None, received: Received
    ) -> None:
        """Write the layer over those with the chain IDs `below`, None = without them. Under its
        lock. When that fails nothing of it is left.
        """
        file = layer_file(layer, self._files)
        try:
            async with self._snapshots.layer_place(fresh.snapshot, below) as place:
                with staged(layer.digest, "layer unpacking"):
                    fresh.result = await self._workers.extract(file, place, received)
                fresh.content = fresh.result.content
                if fresh.content is None and not self._snapshots.capabilities.settles:
                    (fresh.content,) = await self._workers.count([place.root])
        except NeedsLowerLayers:
            fresh.result = None
        except BaseException:
            await finish(self._discard(layer.chain_id))
            raise
        fresh.written = True

    async def _discard(self, key: str) -> None:
        self._fresh.pop(key, None)
        snapshot = self._snapshots.store.get(key)
        if snapshot is not None and not snapshot.committed:
            await self._snapshots.remove(key)

    async def _release(self, keys: Sequence[str]) -> None:
        """Drop this call's claims; discard layers that are neither committed nor claimed."""
        for key in reversed(keys):
            snapshot = self._snapshots.store.get(key)
            if key in self._fresh or (snapshot is not None and not snapshot.committed):
                async with self._claims.removing(key) as unclaimed:
                    if unclaimed:
                        await self._discard(key)


def _row(fresh: _Fresh) -> Snapshot:
    """Of a finished layer."""
    assert fresh.settled is not None
    assert fresh.content is not None
    return dataclasses.replace(
        fresh.settled,
        entries=fresh.content.names,
        content_bytes=fresh.content.size,
        facts=fresh.content.facts,
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that ended a task group; cancellations are its consequence."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
