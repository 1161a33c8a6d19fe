# SPDX-License-Identifier: Apache-2.0
"""Collection of what no image needs: layers, blobs, unfinished downloads.

A blob or layer stays for as long as an image or a security profile names it, a container uses it or
a pull claims it.
Downloads of a failed pull stay for the next attempt until `retention_s` is over, an image is
removed, the disk is full or the agent starts. No step waits for a registry: pulls continue
meanwhile.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from criagent.base import faults
from criagent.base.aio import FAILURES, run_in
from criagent.image.content import ImageContent
from criagent.image.documents.digest import Digest, parse_digest
from criagent.image.layers import LayerUnpacker
from criagent.image.snapshots.keys import damaged_key, damaged_origin
from criagent.model.container import Container
from criagent.model.image import Image, Snapshot
from criagent.store.containers import ContainerStore
from criagent.store.profiles import ProfileStore

_SWEEP_S = 600.0
_SWEEP_LEAST_S = 60.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What a collection freed."""

    freed_bytes: int = 0
    blobs: int = 0
    snapshots: int = 0

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(
            freed_bytes=self.freed_bytes + other.freed_bytes,
            blobs=self.blobs + other.blobs,
            snapshots=self.snapshots + other.snapshots,
        )


@dataclass(eq=False, slots=True, kw_only=True)
class Collector:
    """Collects for one image store; one collection at a time.

    `retention_s` may be set again at run time.
    """

    content: ImageContent
    containers: ContainerStore
    profiles: ProfileStore
    unpackers: Mapping[str, LayerUnpacker]  # by storage driver
    retention_s: float
    one_at_a_time: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)

    async def collect(self, *, retained_s: float = 0.0) -> Pruned:
        """Drop what no image, container, pull or import needs.

        Of the downloads of failed pulls only those older than `retained_s`.
        """
        async with self.one_at_a_time:
            freed = await self._layers()
            faults.reach("remove-image:layers")
            freed += await self._blobs(retained_s)
            freed += await self._parts(retained_s)
            faults.reach("remove-image:blobs")
            await run_in(self.content.fs, self.content.files.count)
        return freed

    async def run(self) -> None:
        """Collect in a loop whatever has become too old."""
        while True:
            await asyncio.sleep(min(_SWEEP_S, max(self.retention_s, _SWEEP_LEAST_S)))
            try:
                freed = await self.collect(retained_s=self.retention_s)
                if freed != Pruned():
                    log.info("image_content_collected", **dataclasses.asdict(freed))
                self.content.drivers.empty_soon()
            except Exception as failure:  # the next one may succeed
                FAILURES["background"] += 1
                log.exception("collection_failed", error=repr(failure))

    def unowned(self) -> tuple[int, int]:
        """Bytes and files of blobs and downloads without a row; from memory."""
        owned = {blob.digest for blob in self.content.blobs.all()}
        sizes = [
            size for digest, size in self.content.files.sizes().items() if str(digest) not in owned
        ]
        parts = self.content.files.parts_usage
        return sum(sizes) + parts.used_bytes, len(sizes) + parts.files

    def needed_blobs(self) -> set[str]:
        """Digests that images and security profiles name.

        Without those of unpacked layers where they are not kept.
        """
        of_images = {
            digest
            for image in self.content.store.all()
            for digest in blobs_of(image) - self._spare(image)
        }
        return of_images.union(*((one.digest, one.layer) for one in self.profiles.all()))

    async def drop_spare(self, image: Image) -> None:
        """Drop the blobs of the image's unpacked layers that need not be kept."""
        spare = self._spare(image)
        if not spare:
            return
        for digest in sorted(spare):
            async with self.content.claims.removing(digest) as free:
                if free and digest not in self.needed_blobs():
                    await self._forget_blob(parse_digest(digest))
        await run_in(self.content.fs, self.content.files.count)

    def _spare(self, image: Image) -> set[str]:
        """Digests of the layers that can do without their blobs, where these are not kept."""
        if self.content.keep_blobs:
            return set()
        documents = {image.id, image.manifest_digest}
        unpacked = (
            layer.digest
            for layer in image.layers
            if any(unpacker.has(layer) for unpacker in self.unpackers.values())
        )
        return set(unpacked) - documents

    async def drop_layer(self, layer: Snapshot) -> bool:
        """Drop a damaged layer, so that the next pull unpacks it again; False = a pull uses it.

        Containers that use it keep the rest of it until they are removed.
        """
        part = self.content.drivers.of_driver(layer.driver)
        async with self.unpackers[layer.driver].removing(layer.key) as free:
            if free and part.store.owned(layer.key) is not None:
                if layer.key in self._layers_of_containers(layer.driver):
                    await part.store.rename(layer.key, damaged_key(layer))
                else:
                    await part.remove(layer.key)
            return free

    async def drop_blob(self, digest: Digest) -> bool:
        """Drop a blob with its row, whatever needs it; False = a pull uses it."""
        async with self.content.claims.removing(str(digest)) as free:
            if free:
                await self._forget_blob(digest)
            return free

    def users(self, layer: Snapshot) -> list[str]:
        """Ids of the containers that have the layer in their root or in a volume."""
        chains, found = _Chains(self._snapshots(layer.driver)), set()
        for snapshot in self._snapshots(layer.driver):
            if not snapshot.committed and layer.key in chains.below([snapshot.parent]):
                found.add(snapshot.key)
        for container in self._containers(layer.driver):
            if layer.key in chains.below(volume.top for volume in container.image_volumes):
                found.add(container.id)
        return sorted(found)

    async def _layers(self) -> Pruned:
        freed = count = 0
        for driver, unpacker in self.unpackers.items():
            for snapshot in self._unused_layers(driver):
                async with unpacker.removing(snapshot.key) as free:
                    if free and snapshot in self._unused_layers(driver):
                        await self.content.drivers.of_driver(driver).remove(snapshot.key)
                        freed, count = freed + snapshot.used_bytes, count + 1
        return Pruned(freed_bytes=freed, snapshots=count)

    async def _blobs(self, retained_s: float) -> Pruned:
        freed = count = 0
        needed, sizes = self.needed_blobs(), await run_in(self.content.fs, self.content.files.count)
        owned = {parse_digest(blob.digest): blob.size for blob in self.content.blobs.all()}
        strays = [digest for digest in sizes if digest not in owned and str(digest) not in needed]
        old = await run_in(
            self.content.fs, self.content.files.unused_for, strays, self._now_s(), retained_s
        )
        for digest in [*(d for d in owned if str(d) not in needed), *old]:
            async with self.content.claims.removing(str(digest)) as free:
                if free and str(digest) not in self.needed_blobs():
                    await self._forget_blob(digest)
                    freed += sizes.get(digest, owned.get(digest, 0))
                    count += 1
        return Pruned(freed_bytes=freed, blobs=count)

    async def _forget_blob(self, digest: Digest) -> None:
        if self.content.blobs.has(str(digest)):
            await self.content.blobs.delete(str(digest))
            faults.reach("remove-image:blob-row")
        await run_in(self.content.fs, self.content.files.remove, digest)

    async def _parts(self, retained_s: float) -> Pruned:
        freed = 0
        old = await run_in(self.content.fs, self.content.files.old_parts, self._now_s(), retained_s)
        for digest, part in old:
            async with self.content.claims.removing(str(digest)) as free:
                if free:
                    freed += await run_in(self.content.fs, self.content.files.drop_part, part)
        return Pruned(freed_bytes=freed)

    def _now_s(self) -> float:
        return self.content.now_ns() / 1e9

    def _snapshots(self, driver: str) -> list[Snapshot]:
        return self.content.drivers.of_driver(driver).store.all()

    def _containers(self, driver: str) -> list[Container]:
        """The containers whose root and image volumes the driver mounts."""
        drivers = self.content.drivers
        return [
            c for c in self.containers.all() if drivers.of_container(c.id).store.driver == driver
        ]

    def _layers_of_containers(self, driver: str) -> set[str]:
        snapshots = self._snapshots(driver)
        tops = [s.parent for s in snapshots if not s.committed]
        tops += [v.top for container in self._containers(driver) for v in container.image_volumes]
        return _Chains(snapshots).below(tops)

    def _unused_layers(self, driver: str) -> list[Snapshot]:
        """Committed layers to drop, the topmost first: all of a driver that no handler has."""
        needed = self._layers_of_containers(driver)
        if self.content.drivers.in_use(driver):
            images = self.content.store.all()
            needed |= {layer.chain_id for image in images for layer in image.layers}
        unused = [
            s
            for s in self._snapshots(driver)
            if s.committed and s.key not in needed and not self._damaged_in_use(s)
        ]
        return sorted(unused, key=lambda s: s.number, reverse=True)

    def _damaged_in_use(self, damaged: Snapshot) -> bool:
        """Whether a container was created from this layer before it was unpacked again."""
        origin = damaged_origin(damaged.key)
        if not origin:
            return False
        anew = self.content.drivers.of_driver(damaged.driver).store.get(origin)
        snapshots = self._snapshots(damaged.driver)
        chains = _Chains(snapshots)
        for snapshot in snapshots:
            if snapshot.committed or (anew is not None and snapshot.number > anew.number):
                continue
            container = self.containers.get(snapshot.key)
            volumes = (
                [] if container is None else [volume.top for volume in container.image_volumes]
            )
            if origin in chains.below([snapshot.parent, *volumes]):
                return True
        return False


def blobs_of(image: Image) -> set[str]:
    """Digests of the blobs that the image names."""
    return {
        image.id,
        image.manifest_digest,
        *(layer.digest for layer in image.layers),
        *(name.partition("@")[2] for name in image.all_digests),
    }


class _Chains:
    """Which layers lie below which."""

    def __init__(self, snapshots: Iterable[Snapshot]) -> None:
        self._parents: dict[str, str] = {}
        for snapshot in snapshots:
            # Below a layer that was dropped as damaged lies what lay there before.
            key = damaged_origin(snapshot.key) or snapshot.key
            self._parents[key] = snapshot.parent

    def below(self, tops: Iterable[str]) -> set[str]:
        """Keys of these layers and of all below them."""
        found: set[str] = set()
        for top in tops:
            key = top
            while key and key not in found:
                found.add(key)
                key = self._parents.get(key, "")
        return found
