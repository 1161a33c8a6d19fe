# SPDX-License-Identifier: Apache-2.0
"""A file system of its own with one storage driver on it, and images unpacked by real workers."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from criagent.config.storage_section import Storage as StorageSection
from criagent.image.blobs import BlobFiles
from criagent.image.documents.digest import parse_digest
from criagent.image.layers import LayerUnpacker
from criagent.image.snapshots.driver import MappedIds, MountPoint
from criagent.image.snapshots.drivers.available import DRIVERS
from criagent.image.snapshots.snapshots import Snapshots
from criagent.image.unpack.workers import UnpackWorkers
from criagent.kernel import mount
from criagent.model.image import Image, ImageConfig, Layer, Snapshot
from criagent.store.blobs import BlobStore
from criagent.store.db import Database
from criagent.store.images import ImageStore
from criagent.store.snapshots import SnapshotStore

SIZE = 64 << 20  # of the file system in bytes


@contextlib.contextmanager
def file_system(top: Path, driver: str) -> Iterator[Path]:
    """A file system of `SIZE` bytes that `driver` can use: it fills up soon."""
    top.mkdir()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_BACKING.get(driver, _tmpfs)(top))
            yield top
            mount.detach_below(top)
    finally:
        mount.detach_below(top)
        top.rmdir()


@contextlib.contextmanager
def _tmpfs(top: Path) -> Iterator[None]:
    """It has all that layers need."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "storage", top], check=True)
    yield


@contextlib.contextmanager
def _btrfs(top: Path) -> Iterator[None]:
    image = top.with_name("image")
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.btrfs", "-q", "--mixed", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", image, top], check=True)
    try:
        yield
    finally:
        image.unlink()


_BACKING = {"btrfs": _btrfs}


def layers_of(*tars: bytes) -> tuple[Layer, ...]:
    """The layers of an image, lowest first; the blob of each is its tar, compressed."""
    found: list[Layer] = []
    for plain in tars:
        diff_id = "sha256:" + hashlib.sha256(plain).hexdigest()
        chain = f"{found[-1].chain_id} {diff_id}" if found else ""
        packed = gzip.compress(plain, 1, mtime=0)
        found.append(
            Layer(
                digest="sha256:" + hashlib.sha256(packed).hexdigest(),
                size=len(packed),
                media_type="",
                diff_id=diff_id,
                chain_id="sha256:" + hashlib.sha256(chain.encode()).hexdigest()
                if chain
                else diff_id,
            )
        )
    return tuple(found)


class Storage:
    """What an agent has of its root directory; `reopen` is its restart."""

    def __init__(self, top: Path, driver: str, state: Path) -> None:
        """The database is in `state`, so that a full file system is the driver's matter alone."""
        self.top = top
        self.mounts = top / "mounts"
        self.mounts.mkdir(exist_ok=True)
        self._driver = driver
        self._state = state

    async def open(self) -> Storage:
        """As at the start of the agent."""
        self._threads = ThreadPoolExecutor(4)
        self.db = Database.open(self._state / "state.db")
        self.rows = SnapshotStore(self.db)
        self.images = ImageStore(self.db, self.rows, BlobStore(self.db))
        self.driver = DRIVERS[self._driver](self.top / "snapshots", StorageSection(), self._threads)
        self.snapshots = Snapshots(self.driver, self.rows, self._threads)
        await self.snapshots.prepare()
        self.files = BlobFiles(self._state / "blobs")
        self.files.prepare()
        self.workers = UnpackWorkers(2)
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

    async def image(self, *tars: bytes) -> Image:
        """Unpack and commit an image of these layers, lowest first."""
        layers = layers_of(*tars)
        blobs = {
            layer.digest: gzip.compress(plain, 1, mtime=0)
            for layer, plain in zip(layers, tars, strict=True)
        }

        async def fetch(layer: Layer) -> None:
            self.files.store(parse_digest(layer.digest), blobs[layer.digest])

        name = "sha256:" + hashlib.sha256(b"".join(tars)).hexdigest()
        image = Image(id=name, manifest_digest=name, config=ImageConfig(), layers=layers)
        async with self._unpacker.unpacked(layers, fetch, lambda _: None) as snapshots:
            return await self.images.put(image, snapshots)

    async def writable(self, letter: str, image: Image) -> Snapshot:
        """The writable layer of a new container."""
        top = image.layers[-1].chain_id if image.layers else ""
        return await self.snapshots.create_container(letter * 64, parent=top, created_at_ns=1)

    @asynccontextmanager
    async def root(
        self, snapshot: Snapshot, image: Image, ids: MappedIds | None = None
    ) -> AsyncIterator[Path]:
        """The root file system of a container, mounted for the block."""
        target = self.mounts / snapshot.key[:1] / "rootfs"
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

    def damage(self, layer: Snapshot, name: str) -> None:
        """Delete the file `name` of a committed layer, or change its image."""
        directory = self.snapshots.root / str(layer.number)
        if self._driver == "btrfs":
            command = ["btrfs", "property", "set", "-ts", str(directory), "ro", "false"]
            subprocess.run(command, check=True)
        if (directory / "fs").exists():
            (directory / "fs" / name).unlink()
        else:
            with (directory / "image").open("r+b") as image:
                image.seek(-1, os.SEEK_END)
                image.write(b"?")

    def directories(self) -> list[str]:
        """Names of what the driver has on disk, the trash included."""
        root = self.snapshots.root
        found = [path.name for path in root.iterdir() if path.name.isdigit()]
        return sorted(found + [f"trash/{path.name}" for path in (root / "trash").iterdir()])
