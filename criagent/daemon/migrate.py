# SPDX-License-Identifier: Apache-2.0
"""`criagent storage migrate`: the images of a root directory, stored by another driver.

    marked ─▶ old layers removed ─▶ driver remembered ─▶ images unpacked from their blobs ─▶ done

The agent does not start while the mark is there; the same command goes on where it was killed. Old
layers go first, since a disk that holds both is rarely there; their blobs are what is kept.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

from criagent.base import faults
from criagent.base.aio import run_in
from criagent.base.errors import AgentError, UnsupportedError, WrongStateError
from criagent.config.sections import Config
from criagent.config.storage_drivers import DEFAULT, canonical
from criagent.daemon.root_lock import locked
from criagent.daemon.wiring import image as wiring
from criagent.daemon.wiring.image import DRIVER_SETTING, MIGRATION_SETTING, ImageParts
from criagent.daemon.wiring.shared import Executors, Shared, Stores
from criagent.image.blobs import BlobFiles
from criagent.image.documents.digest import parse_digest
from criagent.image.snapshots.by_handler import directory
from criagent.image.snapshots.driver import SnapshotDriver
from criagent.image.snapshots.drivers.available import chosen, driver
from criagent.image.snapshots.snapshots import Snapshots
from criagent.model.image import Image
from criagent.store.snapshots import SnapshotStore

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for: the driver `to`; `pull` = images without blobs are pulled again."""

    to: str
    dry_run: bool = False
    pull: bool = False


def migrate(config: Config, options: Options, tell: Tell) -> int:
    """The exit status: 1 when an image could not be unpacked. Raises AgentError, OSError.

    UnavailableError while an agent has the root directory, WrongStateError while it has containers,
    UnsupportedError when the new driver can't work there.
    """
    with locked(config.storage.root):
        faults.arm(config.debug.kill_at or None, config.debug.fail_at)
        return asyncio.run(_migrate(config, options, tell))


async def _migrate(config: Config, options: Options, tell: Tell) -> int:
    executors = Executors.start()
    try:
        stores = Stores.open(config.storage.root / "state.db")
        try:
            return await _Migration(Shared.of(config, stores, executors), options, tell).run()
        finally:
            stores.db.close()
    finally:
        executors.shutdown()


class _Migration:
    def __init__(self, shared: Shared, options: Options, tell: Tell) -> None:
        storage = dataclasses.replace(shared.config.storage, driver=canonical(options.to))
        config = dataclasses.replace(shared.config, storage=storage)
        self._shared = dataclasses.replace(shared, config=config)
        self._options = options
        self._tell = tell

    async def run(self) -> int:
        stores, new = self._shared.stores, self._shared.config.storage.driver
        old = stores.settings.get(DRIVER_SETTING) or DEFAULT
        others = stores.snapshots.other_drivers()
        root = self._shared.config.storage.root
        chosen(new, "", root, await wiring.unknown_layers(self._shared))
        if old == new and not stores.settings.get(MIGRATION_SETTING):
            self._tell(f"{root} has the driver {new} already")
            return 0
        if "zfs" in (old, new, *others) and old != new:
            raise UnsupportedError(
                "zfs mounts its dataset where the layers of other drivers are; set another "
                "storage.root for the new driver, and pull the images again"
            )
        self._refuse_containers()
        missing = await self._without_blobs()
        self._plan(old, new, missing)
        if self._options.dry_run:
            return 0
        await self._try(new)
        await stores.settings.put(MIGRATION_SETTING, new)
        faults.reach("storage-migrate:marked")
        if old != new:
            for other in others:
                await self._drop_layers(other, stores.snapshots.of(other))
            await self._drop_layers(old, stores.snapshots)
            faults.reach("storage-migrate:dropped")
            await stores.settings.put(DRIVER_SETTING, new)
        faults.reach("storage-migrate:remembered")
        status = await self._unpack_all(missing)
        await stores.settings.put(MIGRATION_SETTING, "")
        self._tell(f'done; set storage.driver = "{new}" and start criagent')
        return status

    async def _try(self, new: str) -> None:
        """Find out that the driver works here while the old layers are still there."""
        candidate = self._driver(new)
        apart = self._shared.config.storage.containers_root
        if apart and not candidate.capabilities.separate_containers:
            raise UnsupportedError(
                f"the storage driver {new} keeps writable layers where the layers of images are; "
                f"remove storage.containers_root ({apart}) first"
            )
        try:
            await candidate.prepare()
        finally:
            await candidate.close()

    def _refuse_containers(self) -> None:
        """Their writable layers cannot be taken along."""
        stores = self._shared.stores
        pods, containers = len(stores.sandboxes.all()), len(stores.containers.all())
        if pods or containers:
            raise WrongStateError(
                f"there are {pods} pods and {containers} containers, whose writable layers cannot "
                "be migrated; drain the node, start criagent, run `crictl rmp -a -f`, stop it, and "
                "try again"
            )

    async def _without_blobs(self) -> list[Image]:
        files = BlobFiles(self._shared.config.storage.root / "blobs")
        images = self._shared.stores.images.all()

        def found() -> list[Image]:
            return [
                image
                for image in images
                if not all(files.has(parse_digest(layer.digest)) for layer in image.layers)
            ]

        return await run_in(self._shared.executors.fs, found)

    def _plan(self, old: str, new: str, missing: Sequence[Image]) -> None:
        images = self._shared.stores.images.all()
        self._tell(
            f"{old} to {new}: {len(images) - len(missing)} images are unpacked again from blobs"
        )
        what = "is pulled again" if self._options.pull else "is removed; pull it again"
        for image in missing:
            self._tell(f"{_name(image)} has no blobs and {what}")

    def _driver(self, name: str, of_handlers: str = "") -> SnapshotDriver:
        storage = self._shared.config.storage
        root = directory(storage.root, of_handlers)
        return driver(name)(root, storage, self._shared.executors.fs)

    async def _drop_layers(self, name: str, store: SnapshotStore) -> None:
        """Those of handlers too: containers unpack images for their handler's driver again."""
        fs = self._shared.executors.fs
        snapshots = Snapshots(self._driver(name, store.driver), store, fs)
        await snapshots.prepare()
        for snapshot in sorted(store.all(), key=lambda s: s.number, reverse=True):
            await snapshots.remove(snapshot.key)
            faults.reach("storage-migrate:layer")
        await snapshots.sweep()
        await snapshots.close()

    async def _unpack_all(self, missing: Sequence[Image]) -> int:
        parts = await wiring.build(self._shared, migrating=True)
        status = 0
        try:
            await parts.images.prepare()
            for image in self._shared.stores.images.all():
                try:
                    await self._unpack(parts, image, whole=image not in missing)
                except (AgentError, OSError) as exc:
                    status = 1
                    self._tell(f"{_name(image)}: {exc}")
        finally:
            await parts.close()
        return status

    async def _unpack(self, parts: ImageParts, image: Image, *, whole: bool) -> None:
        if not whole:
            await self._shared.stores.images.delete(image.id)
            for name in (*image.repo_tags, *image.repo_digests) if self._options.pull else ():
                await parts.images.pull(name, None)
                self._tell(f"{name} pulled")
            return
        await parts.images.unpacking.unpack(image, "")
        faults.reach("storage-migrate:image")
        self._tell(f"{_name(image)} unpacked")


def _name(image: Image) -> str:
    return (*image.names, image.id)[0]
