# SPDX-License-Identifier: Apache-2.0
"""A layer that is unpacked again beside itself, to be compared with what is on disk.

The trial is a snapshot of the same storage driver, made in the same way, and removed at once. So it
needs the space of one layer for a moment, and whatever a driver makes of a layer, both have it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from criagent.base.aio import finish
from criagent.base.errors import NotFoundError
from criagent.image.blobs import BlobFiles
from criagent.image.documents.digest import parse_digest
from criagent.image.snapshots.keys import trial_key
from criagent.image.snapshots.snapshots import Snapshots
from criagent.image.unpack.compare import Differences
from criagent.image.unpack.workers import LayerFile, NeedsLowerLayers, UnpackWorkers
from criagent.model.image import Layer, Snapshot


def layer_file(layer: Layer, files: BlobFiles) -> LayerFile:
    """The blob of a layer with what it must turn out to be."""
    return LayerFile(
        blob=files.path(parse_digest(layer.digest)),
        digest=layer.digest,
        diff_id=layer.diff_id,
        path=layer.path,
    )


@dataclass(frozen=True, slots=True)
class LayerTrial:
    """Unpacks layers of one storage driver again. The caller claims them."""

    snapshots: Snapshots
    files: BlobFiles
    workers: UnpackWorkers
    now_ns: int

    async def differences(self, layers: Sequence[Layer]) -> Differences:
        """As `LayerUnpacker.differences`."""
        row = self.snapshots.store.owned(layers[-1].chain_id)
        if row is None or not row.committed:
            raise NotFoundError(f"layer {layers[-1].digest} was removed meanwhile")
        async with self.snapshots.layer_tree(row) as tree:
            if tree is None:
                return Differences([], 0)
            async with self._unpacked(layers) as trial, self.snapshots.layer_tree(trial) as again:
                assert again is not None
                return await self.workers.compare(tree, again)

    @asynccontextmanager
    async def _unpacked(self, layers: Sequence[Layer]) -> AsyncIterator[Snapshot]:
        """The topmost of `layers` over the others, for the block."""
        key, below = trial_key(layers[-1].chain_id), [layer.chain_id for layer in layers[:-1]]
        file = layer_file(layers[-1], self.files)
        try:
            trial = await self._made(key, below)
            alone = self.snapshots.capabilities.settles and bool(below)
            if not (alone and await self._settled(file, trial, below)):
                if alone:
                    await self.snapshots.remove(key)
                    trial = await self._made(key, below)
                async with self.snapshots.layer_place(trial, below) as place:
                    await self.workers.extract(file, place, lambda _: None)
            await self.snapshots.commit_layer(trial)
            yield trial
        finally:
            await finish(self.snapshots.remove(key))
            self.snapshots.empty_soon()

    async def _made(self, key: str, below: Sequence[str]) -> Snapshot:
        parent = below[-1] if below else ""
        return await self.snapshots.create_layer(key, parent=parent, created_at_ns=self.now_ns)

    async def _settled(self, file: LayerFile, trial: Snapshot, below: Sequence[str]) -> bool:
        """Whether the layer could be written alone, as at a pull."""
        with contextlib.suppress(NeedsLowerLayers):
            async with self.snapshots.layer_place(trial, None) as place:
                result = await self.workers.extract(file, place, lambda _: None)
            if result.unsettled:
                async with self.snapshots.layer_place(trial, below) as place:
                    await self.workers.settle(place)
            return True
        return False
