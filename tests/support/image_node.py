# SPDX-License-Identifier: Apache-2.0
"""Everything of a node that has to do with images, but the workers that unpack: no root needed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

from criagent.base.aio import finish
from criagent.base.errors import CorruptError
from criagent.config.storage_section import Storage
from criagent.image.additional_stores import opened
from criagent.image.blobs import BlobFiles
from criagent.image.claims import Claims
from criagent.image.collect import Collector
from criagent.image.content import ImageContent
from criagent.image.hosts.credentials import RegistryAuth
from criagent.image.hosts.hosts_toml import HostsDirectory
from criagent.image.hosts.proxy import ProxySettings
from criagent.image.hosts.registries import RegistryHosts
from criagent.image.images import Images
from criagent.image.layers import LayerUnpacker
from criagent.image.policy.admission import Admission, Rules
from criagent.image.pull import Puller
from criagent.image.registry import RegistryClient, Settings
from criagent.image.snapshots.by_handler import SnapshotsByHandler, directory
from criagent.image.snapshots.content_count import ContentCount, content_count
from criagent.image.snapshots.driver import LayerPlace
from criagent.image.snapshots.drivers.available import driver as driver_class
from criagent.image.snapshots.snapshots import Snapshots
from criagent.image.unpack.compare import Differences, compare
from criagent.image.unpack.workers import LayerFile, NeedsLowerLayers, Unpacked
from criagent.image.unpacking import ImageUnpacking
from criagent.model.container import Container, ContainerId, ContainerMetadata, ContainerSpec
from criagent.model.image import Image, Snapshot
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.store.blobs import BlobStore
from criagent.store.containers import ContainerStore
from criagent.store.db import Database
from criagent.store.images import ImageStore
from criagent.store.profiles import ProfileStore
from criagent.store.sandboxes import SandboxStore
from criagent.store.snapshots import SnapshotStore
from tests.support.pulling import RANGE, TarPit

RETENTION_S = 3600.0


class PlainWorkers:
    """Writes a layer's blob as the one file `content`; checks its diff ID.

    Extraction of a diff ID in `held` waits for `release`; `lowers` are those that must be written
    through their lower layers. `extracted` has the diff IDs in the order of their beginning.
    """

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.lowers: set[str] = set()
        self.release = asyncio.Event()
        self.entered = asyncio.Event()
        self.extracted: list[str] = []
        self.failure: Exception | None = None

    async def extract(
        self, layer: LayerFile, place: LayerPlace, received: Callable[[int], None]
    ) -> Unpacked:
        self.extracted.append(layer.diff_id)
        (place.root / "content").write_bytes(content := layer.blob.read_bytes())
        if self.failure is not None:
            raise self.failure
        if layer.diff_id in self.held:
            self.entered.set()
            await self.release.wait()
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != layer.diff_id:
            raise CorruptError(f"layer {layer.digest} has another diff ID")
        if layer.diff_id in self.lowers and not place.lower_layers:
            raise NeedsLowerLayers(layer.diff_id)
        received(len(content))
        return Unpacked(used_bytes=4096, inodes=1, unsettled=False)

    async def settle(self, place: LayerPlace) -> None:
        """Nothing is unsettled."""

    async def count(self, roots: Sequence[Path]) -> list[ContentCount]:
        return [content_count(root) for root in roots]

    async def compare(self, root: Path, expected: Path) -> Differences:
        return compare(root, expected)


class ImageNode:
    """Pulls, collects and checks below `top`; its clock is `later_s` ahead."""

    def __init__(
        self,
        top: Path,
        *,
        retention_s: float = RETENTION_S,
        driver: str = "overlay",
        keep_blobs: bool = True,
        stores: tuple[Path, ...] = (),
        handlers: Mapping[str, str] = MappingProxyType({}),
        platforms: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`handlers` have storage drivers of their own, those in `platforms` a platform."""
        self.top = top
        self.later_s = 0.0
        self.files = BlobFiles(top / "blobs")
        self.workers = PlainWorkers()
        self.db = Database.open(top / "state.db")
        self._threads = ThreadPoolExecutor(4)
        directories = driver_class(driver)(
            top / "snapshots", Storage(additional_stores=stores), self._threads
        )
        rows = SnapshotStore(self.db)
        self.snapshots = Snapshots(directories, rows, self._threads)
        self.drivers = SnapshotsByHandler(
            default=self.snapshots,
            others={
                name: Snapshots(
                    driver_class(name)(directory(top, name), Storage(), self._threads),
                    rows.of(name),
                    self._threads,
                )
                for name in {*handlers.values(), *rows.other_drivers()}
            },
            drivers=handlers,
        )
        self.blobs, self.sandboxes = BlobStore(self.db), SandboxStore(self.db)
        self.containers = ContainerStore(self.db)
        self.profiles = ProfileStore(self.db, self.blobs)
        additional = opened(stores, driver)
        self.snapshots.store.lend(additional.layers())
        store = ImageStore(self.db, self.snapshots.store, self.blobs)
        self.client = RegistryClient(
            settings=Settings(
                hosts=RegistryHosts(HostsDirectory([top / "certs.d"])),
                docker_config=top / "config.json",
                proxies=ProxySettings(),
            ),
            files=self.files,
            fs=self._threads,
            range_bytes=RANGE,
        )
        unpackers = {
            part.store.driver: LayerUnpacker(
                snapshots=part,
                files=self.files,
                workers=self.workers,  # type: ignore[arg-type]
                now_ns=self.now_ns,
            )
            for part in self.drivers.all()
        }
        self.unpacker = unpackers[""]
        self.claims = Claims()
        content = ImageContent(
            store=store,
            blobs=self.blobs,
            files=self.files,
            drivers=self.drivers,
            claims=self.claims,
            fs=self._threads,
            now_ns=self.now_ns,
            keep_blobs=keep_blobs,
            additional=additional,
            platforms=platforms,
        )
        admission = Admission(self.client, self._threads, Rules())
        puller = Puller(
            client=self.client,
            content=content,
            unpackers=unpackers,
            admission=admission,
            parallel_blobs=3,
            progress_timeout_s=30.0,
        )
        self.collector = Collector(
            content=content,
            containers=self.containers,
            profiles=self.profiles,
            unpackers=unpackers,
            retention_s=retention_s,
        )
        self.images = Images(
            content=content,
            unpacking=ImageUnpacking(
                content=content, unpackers=unpackers, puller=puller, collector=self.collector
            ),
            workers=self.workers,  # type: ignore[arg-type]
            puller=puller,
            collector=self.collector,
            root=top,
            pinned=(),
        )

    def now_ns(self) -> int:
        return time.time_ns() + int(self.later_s * 1e9)

    def blob_files(self) -> list[Path]:
        folder = self.top / "blobs"
        return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []

    async def start(self) -> None:
        await self.images.prepare()
        await self.drivers.sweep()

    async def close(self) -> None:
        await finish(self._close())

    async def _close(self) -> None:
        await self.images.close()
        await self.client.close()
        self.db.close()
        self._threads.shutdown()

    async def pull(
        self, name: str, auth: RegistryAuth | None = None, *, handler: str = ""
    ) -> Image:
        async with asyncio.timeout(30):
            return await self.images.pull(name, auth, handler)

    def tree(self, snapshot: Snapshot) -> Path:
        """The files of a layer."""
        return self.snapshots.root / str(snapshot.number) / "fs"

    def layers(self) -> set[str]:
        """Chain IDs of what is unpacked and committed."""
        return {snapshot.key for snapshot in self.snapshots.store.all() if snapshot.committed}

    def on_disk(self) -> tuple[int, int]:
        """Bytes and files below blobs, as ImageFsInfo counts them."""
        used = [
            facts.st_blocks * 512 if "." in path.name else facts.st_size
            for path, facts in ((path, path.stat()) for path in self.blob_files())
        ]
        return sum(used), len(used)

    def counted(self) -> tuple[int, int]:
        """Bytes and files of blobs that ImageFsInfo says."""
        usage = self.images.fs_usages()[0]
        layers = [snapshot for snapshot in self.snapshots.store.all() if snapshot.committed]
        return (
            usage.used_bytes - sum(snapshot.used_bytes for snapshot in layers),
            usage.inodes_used - sum(snapshot.inodes for snapshot in layers),
        )


@contextlib.asynccontextmanager
async def pulling(node: ImageNode, name: str, pit: TarPit) -> AsyncIterator[asyncio.Task[object]]:
    """A pull that has got as far as the pit, cancelled afterwards."""
    task: asyncio.Task[object] = asyncio.create_task(node.pull(name))
    await pit.reached.wait()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
        await until_idle(node)


async def until(condition: Callable[[], bool]) -> None:
    """Return when it holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - files and counters have no event
            await asyncio.sleep(0)


async def until_idle(node: ImageNode) -> None:
    """Return when cancelled pulls have stopped."""
    await until(lambda: not node.images.puller.running)


async def findings(node: ImageNode) -> list[str]:
    return [f"{f.object}: {f.problem}" for f in (await node.images.fsck(repair=False)).findings]


async def keep(node: ImageNode, top: str) -> Container:
    """A container whose root has the layers up to `top`."""
    sandbox = Sandbox(
        id=SandboxId("b" * 64),
        spec=SandboxSpec(metadata=SandboxMetadata(name="p", uid="u", namespace="n")),
        created_at_ns=1,
        boot_id="boot",
    )
    container = Container(
        id=ContainerId("c" * 64),
        sandbox_id=sandbox.id,
        spec=ContainerSpec(metadata=ContainerMetadata(name="c"), image="i"),
        created_at_ns=1,
        boot_id="boot",
        handler="crun",
    )
    await node.sandboxes.insert(sandbox)
    await node.containers.insert(container)
    await node.snapshots.create_container(container.id, parent=top, created_at_ns=1)
    return container
