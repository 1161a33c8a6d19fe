# SPDX-License-Identifier: Apache-2.0
"""One storage driver on a file system of its own, and images unpacked by real workers."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from criagent.config.storage_section import Storage as StorageSection
from criagent.image.blobs import BlobFiles
from criagent.image.documents.digest import parse_digest
from criagent.image.layers import LayerUnpacker
from criagent.image.snapshots.driver import MappedIds, MountPoint
from criagent.image.snapshots.drivers.available import driver as driver_class
from criagent.image.snapshots.snapshots import Snapshots
from criagent.image.unpack.compare import Differences
from criagent.image.unpack.workers import UnpackWorkers
from criagent.model.image import Image, ImageConfig, Layer, Snapshot
from criagent.store.blobs import BlobStore
from criagent.store.db import Database
from criagent.store.images import ImageStore
from criagent.store.snapshots import SnapshotStore
from tests.storage.grounds import SIZE, ground, mounts_of

Arriving = Callable[[Layer], Awaitable[None]]


def layers_of(*tars: bytes) -> tuple[Layer, ...]:
    """The layers of an image, lowest first; the blob of each is its tar, compressed."""
    return _chained([("", plain, gzip.compress(plain, 1, mtime=0)) for plain in tars])


def _chained(parts: Sequence[tuple[str, bytes, bytes]]) -> tuple[Layer, ...]:
    """Layers of these paths of artifacts ("" = an archive), contents and blobs, lowest first."""
    found: list[Layer] = []
    for path, plain, blob in parts:
        diff_id = "sha256:" + hashlib.sha256(plain).hexdigest()
        chain = f"{found[-1].chain_id} {diff_id}" if found else ""
        found.append(
            Layer(
                digest="sha256:" + hashlib.sha256(blob).hexdigest(),
                size=len(blob),
                media_type="",
                diff_id=diff_id,
                chain_id="sha256:" + hashlib.sha256(chain.encode()).hexdigest()
                if chain
                else diff_id,
                path=path,
            )
        )
    return tuple(found)


def write_until_full(file: Path) -> None:
    """In smaller and smaller pieces, each to the disk: FUSE would take any into the page cache."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for size in (1 << 20, 64 << 10, 4096):
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, os.urandom(size))
                    os.fdatasync(fd)
    finally:
        with contextlib.suppress(OSError):  # what did not fit, again
            os.close(fd)


class Storage:
    """What an agent has of its root directory; `reopen` is its restart."""

    def __init__(
        self,
        top: Path,
        driver: str,
        state: Path,
        section: StorageSection | None = None,
        size: int = SIZE,
    ) -> None:
        """The database is in `state`, so that a full file system is the driver's matter alone.

        The keys of the driver are those of its ground, with `size` bytes for snapshots, unless
        `section` has others.
        """
        self._section = section or ground(driver).section(size)
        self.top = top
        self.mounts = mounts_of(top)
        self.mounts.mkdir(exist_ok=True)
        self._driver = driver
        self._state = state

    async def open(self) -> Storage:
        """As at the start of the agent."""
        self._threads = ThreadPoolExecutor(4)
        self.db = Database.open(self._state / "state.db")
        self.rows = SnapshotStore(self.db)
        self.images = ImageStore(self.db, self.rows, BlobStore(self.db))
        make = driver_class(self._driver)
        self.driver = make(self.top / "snapshots", self._section, self._threads)
        self.snapshots = Snapshots(self.driver, self.rows, self._threads)
        self.workers = UnpackWorkers(2)
        try:
            await self.snapshots.prepare()
        except BaseException:
            await self.snapshots.close()
            self.db.close()
            self._threads.shutdown()
            raise
        self.files = BlobFiles(self._state / "blobs")
        self.files.prepare()
        self._unpacker = LayerUnpacker(
            snapshots=self.snapshots,
            files=self.files,
            workers=self.workers,
            now_ns=time.time_ns,
        )
        return self

    async def close(self) -> None:
        await self.snapshots.close()
        await self.workers.close()
        self.db.close()
        self._threads.shutdown()

    async def reopen(self) -> None:
        """As after a restart of the agent."""
        await self.close()
        await self.open()
        await self.snapshots.sweep()

    async def image(self, *tars: bytes, arriving: Arriving | None = None) -> Image:
        """Unpack and commit an image of these layers, lowest first.

        `arriving` is awaited before the blob of each layer is there.
        """
        blobs = [gzip.compress(plain, 1, mtime=0) for plain in tars]
        return await self._unpacked(layers_of(*tars), blobs, arriving=arriving)

    async def artifact(self, files: Mapping[str, bytes]) -> Image:
        """Unpack and commit an OCI artifact that has a layer for each file, by its path."""
        parts = [(path, content, content) for path, content in files.items()]
        return await self._unpacked(_chained(parts), list(files.values()), "application/x-test")

    async def _unpacked(
        self,
        layers: tuple[Layer, ...],
        blobs: Sequence[bytes],
        artifact: str = "",
        arriving: Arriving | None = None,
    ) -> Image:
        by_digest = {layer.digest: blob for layer, blob in zip(layers, blobs, strict=True)}

        async def fetch(layer: Layer) -> None:
            if arriving is not None:
                await arriving(layer)
            self.files.store(parse_digest(layer.digest), by_digest[layer.digest])

        name = "sha256:" + hashlib.sha256("".join(la.diff_id for la in layers).encode()).hexdigest()
        image = Image(
            id=name,
            manifest_digest=name,
            config=ImageConfig(),
            layers=layers,
            artifact=artifact,
        )
        async with self._unpacker.unpacked(layers, fetch, lambda _: None) as snapshots:
            return await self.images.put(image, snapshots)

    async def writable(self, name: str, image: Image, *, limit_bytes: int = 0) -> Snapshot:
        """The writable layer of a new container, whose id is `name` again and again."""
        top = image.layers[-1].chain_id if image.layers else ""
        key = name * (64 // len(name))
        return await self.snapshots.create_container(
            key, parent=top, created_at_ns=1, limit_bytes=limit_bytes
        )

    @asynccontextmanager
    async def root(
        self, snapshot: Snapshot, image: Image, ids: MappedIds | None = None
    ) -> AsyncIterator[Path]:
        """The root file system of a container, mounted for the block."""
        target = self.mounts / snapshot.key[:8] / "rootfs"
        await self.snapshots.mount_container(snapshot, image, MountPoint(path=target, ids=ids))
        try:
            yield target
        finally:
            await self.snapshots.unmount(target)

    @asynccontextmanager
    async def volume(self, image: Image, ids: MappedIds | None = None) -> AsyncIterator[Path]:
        """The image, mounted as a volume for the block."""
        target = self.mounts / "volume"
        top = image.layers[-1].chain_id if image.layers else ""
        await self.snapshots.mount_image(top, MountPoint(path=target, ids=ids))
        try:
            yield target
        finally:
            await self.snapshots.unmount(target)

    async def problems(self) -> list[str]:
        """What fsck says of each committed layer."""
        layers = [layer for layer in self.rows.all() if layer.committed]
        return [await self.snapshots.problem(layer) for layer in layers]

    async def differences(self, layers: Sequence[Layer]) -> Differences:
        """How the topmost of `layers` differs from its blob."""
        return await self._unpacker.differences(layers)

    async def damage(self, layer: Snapshot, name: str) -> None:
        """Delete the file `name` of a committed layer, or spoil its image."""
        if (spoil := ground(self._driver).damage) is not None:
            spoil(self.snapshots.root, layer.number, name)
            return
        async with self.snapshots.layer_place(layer, []) as place:
            (place.root / name).unlink()

    def tree(self, snapshot: Snapshot) -> Path:
        """The files of a snapshot: for tests of one driver, which knows where it has them."""
        return self.snapshots.root / str(snapshot.number) / "fs"

    def directories(self) -> list[str]:
        """Names of what the driver has on disk, the trash included."""
        root = self.snapshots.root
        found = [path.name for path in root.iterdir() if path.name.isdigit()]
        return sorted(found + [f"trash/{path.name}" for path in (root / "trash").iterdir()])
