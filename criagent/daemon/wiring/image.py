# SPDX-License-Identifier: Apache-2.0
"""Puts together what images need."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import Executor

from criagent.base.aio import run_in
from criagent.base.errors import WrongStateError
from criagent.config.sections import Registry
from criagent.daemon.wiring.shared import Shared
from criagent.image.additional_stores import opened
from criagent.image.blobs import BlobFiles
from criagent.image.claims import Claims
from criagent.image.collect import Collector
from criagent.image.content import ImageContent
from criagent.image.hosts.hosts_toml import HostsDirectory
from criagent.image.hosts.proxy import ProxySettings, from_environment
from criagent.image.images import Images
from criagent.image.layers import LayerUnpacker
from criagent.image.pull import Puller
from criagent.image.registry import RegistryClient
from criagent.image.snapshots.driver import SnapshotDriver
from criagent.image.snapshots.drivers.available import DRIVERS, chosen
from criagent.image.snapshots.drivers.overlay import OverlayDriver
from criagent.image.snapshots.snapshots import Snapshots
from criagent.image.unpack.workers import UnpackWorkers

DRIVER_SETTING = "storage.driver"  # that made the layers
MIGRATION_SETTING = "storage.migration"  # the new driver of one that has not ended, or ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageParts:
    """What images need."""

    images: Images
    puller: Puller
    snapshots: Snapshots
    workers: UnpackWorkers
    client: RegistryClient

    async def close(self) -> None:
        """Stop pulls, workers and connections."""
        await self.images.close()
        await self.snapshots.close()
        await self.workers.close()
        await self.client.close()


async def build(shared: Shared, *, migrating: bool = False) -> ImageParts:
    """Everything about images. Raises UnsupportedError for a root of another storage driver.

    Raises WrongStateError for one whose migration has not ended, unless `migrating`.
    """
    to = shared.stores.settings.get(MIGRATION_SETTING)
    if to and not migrating:
        raise WrongStateError(
            f"a migration of the layers in {shared.config.storage.root} to {to} has not ended; run "
            f"`criagent storage migrate --to {to}` again"
        )
    config, registry, fs = shared.config, shared.config.registry, shared.executors.fs
    content = await _content(shared)
    client = _client(registry, content.files, fs)
    workers = UnpackWorkers(registry.unpack_workers)
    unpacker = LayerUnpacker(
        snapshots=content.snapshots,
        files=content.files,
        workers=workers,
        now_ns=shared.clock.now_ns,
    )
    puller = Puller(
        client=client,
        content=content,
        unpacker=unpacker,
        parallel_blobs=registry.max_parallel_blobs,
        progress_timeout_s=registry.progress_timeout_s,
    )
    images = Images(
        content=content,
        unpacker=unpacker,
        workers=workers,
        puller=puller,
        collector=Collector(
            content=content,
            containers=shared.stores.containers,
            unpacker=unpacker,
            retention_s=registry.retry_retention_s,
        ),
        root=config.storage.root,
        pinned=registry.pinned_images,
    )
    return ImageParts(
        images=images, puller=puller, snapshots=content.snapshots, workers=workers, client=client
    )


async def _content(shared: Shared) -> ImageContent:
    storage, stores, fs = shared.config.storage, shared.stores, shared.executors.fs
    driver = await _driver(shared)
    additional = await run_in(fs, opened, storage.additional_stores, driver.name)
    stores.snapshots.lend(additional.layers())
    return ImageContent(
        store=stores.images,
        blobs=stores.blobs,
        files=BlobFiles(storage.root / "blobs"),
        snapshots=Snapshots(driver, stores.snapshots, fs),
        claims=Claims(),
        fs=fs,
        now_ns=shared.clock.now_ns,
        keep_blobs=storage.keep_blobs,
        additional=additional,
    )


async def _driver(shared: Shared) -> SnapshotDriver:
    """The configured driver, which the root directory remembers before its first snapshot.

    One that remembers none is overlay's, as all were up to 0.2. Nothing is written when nothing
    changes: a full disk gets its space back only later in the start.
    """
    storage, stores = shared.config.storage, shared.stores
    last = stores.settings.get(DRIVER_SETTING) or OverlayDriver.name
    name = chosen(storage.driver, last if stores.snapshots.all() else "", storage.root)
    if name != last:
        await stores.settings.put(DRIVER_SETTING, name)
    return DRIVERS[name](storage.root / "snapshots", storage, shared.executors.fs)


def _client(registry: Registry, files: BlobFiles, fs: Executor) -> RegistryClient:
    proxies = ProxySettings(
        http=registry.http_proxy, https=registry.https_proxy, no_proxy=registry.no_proxy
    )
    return RegistryClient(
        hosts=HostsDirectory(registry.config_dirs),
        docker_config=registry.docker_config,
        proxies=from_environment(os.environ, proxies),
        files=files,
        fs=fs,
        range_bytes=registry.range_bytes,
    )
