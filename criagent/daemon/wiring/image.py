# SPDX-License-Identifier: Apache-2.0
"""Puts together what images need."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

import structlog

from criagent.base.aio import run_in
from criagent.base.errors import AgentError, UnsupportedError, WrongStateError
from criagent.config.runtime_section import Runtime
from criagent.config.sections import Registry
from criagent.config.storage_drivers import DEFAULT, canonical
from criagent.config.storage_section import Storage
from criagent.daemon.wiring.shared import Shared
from criagent.image.additional_stores import opened
from criagent.image.blobs import BlobFiles
from criagent.image.claims import Claims
from criagent.image.collect import Collector
from criagent.image.content import ImageContent
from criagent.image.documents.platforms import host_platform, parse_platform
from criagent.image.hosts.hosts_toml import HostsDirectory
from criagent.image.hosts.proxy import ProxySettings, from_environment
from criagent.image.hosts.registries import RegistriesFile, RegistryHosts
from criagent.image.images import Images
from criagent.image.layers import LayerUnpacker
from criagent.image.policy.admission import Admission, Rules
from criagent.image.profiles.profiles import SecurityProfiles
from criagent.image.pull import Puller
from criagent.image.registry import RegistryClient, Settings
from criagent.image.snapshots.by_handler import SnapshotsByHandler, directory
from criagent.image.snapshots.containers_root import Claim, ContainersRoot, take
from criagent.image.snapshots.driver import SnapshotDriver
from criagent.image.snapshots.drivers.available import chosen
from criagent.image.snapshots.drivers.available import driver as driver_class
from criagent.image.snapshots.drivers.gone import GoneDriver
from criagent.image.snapshots.keys import is_writable
from criagent.image.snapshots.snapshots import Snapshots
from criagent.image.snapshots.traces import traces
from criagent.image.unpack.workers import UnpackWorkers
from criagent.image.unpacking import ImageUnpacking
from criagent.runtime.spec.security.seccomp_pulled import pulled_profile
from criagent.store.profiles import ProfileStore

DRIVER_SETTING = "storage.driver"  # that made the layers
MIGRATION_SETTING = "storage.migration"  # the new driver of one that has not ended, or ""
_ONE_STORE = {"devmapper", "zfs"}  # one pool or dataset, whatever the directory
_CONTAINERS_ROOT_SETTING = "storage.containers_root"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageParts:
    """What images need."""

    images: Images
    profiles: SecurityProfiles
    puller: Puller
    drivers: SnapshotsByHandler
    workers: UnpackWorkers
    client: RegistryClient
    apart: ContainersRoot
    limited_by: str  # the key that wants limits of writable layers, "" = none

    def check_limits(self) -> None:
        """Raises UnsupportedError when limits are wanted that no container can have.

        The storage driver is prepared by now.
        """
        for part in self.drivers.all():
            can, used = part.capabilities, self.drivers.in_use(part.store.driver)
            if self.limited_by and used and not can.size_limits:
                why = can.no_size_limits or "choose another storage.driver"
                raise UnsupportedError(
                    f"{self.limited_by} is set, but the storage driver {part.driver} cannot "
                    f"limit writable layers: {why}, or remove the key"
                )

    async def close(self) -> None:
        """Stop pulls, workers and connections."""
        await self.images.close()
        await self.profiles.close()
        await self.drivers.close()
        await self.workers.close()
        await self.client.close()
        self.apart.close()


async def build(shared: Shared, *, migrating: bool = False) -> ImageParts:
    """Everything about images. Raises UnsupportedError for a root of another storage driver.

    Raises WrongStateError for one whose migration has not ended, unless `migrating`.
    """
    if not migrating:
        _refuse_migration(shared)
    profiles = ProfileStore(shared.stores.db, shared.stores.blobs)  # it reads: before all writes
    config, registry, fs = shared.config, shared.config.registry, shared.executors.fs
    driver = await _driver(shared)
    apart = await _containers_root(shared, driver)
    drivers = await _drivers(shared, driver)
    content = await _content(shared, drivers)
    client = _client(registry, content.files, fs)
    workers = UnpackWorkers(registry.unpack_workers)
    unpackers = _unpackers(content, workers)
    admission = Admission(client, fs, admission_rules(registry))  # a reload changes its rules
    puller = Puller(
        client=client,
        admission=admission,
        content=content,
        unpackers=unpackers,
        parallel_blobs=registry.max_parallel_blobs,
        progress_timeout_s=registry.progress_timeout_s,
    )
    collector = Collector(
        content=content,
        containers=shared.stores.containers,
        profiles=profiles,
        unpackers=unpackers,
        retention_s=registry.retry_retention_s,
    )
    images = Images(
        content=content,
        unpacking=ImageUnpacking(
            content=content, unpackers=unpackers, puller=puller, collector=collector
        ),
        workers=workers,
        puller=puller,
        collector=collector,
        root=config.storage.root,
        pinned=registry.pinned_images,
    )
    return ImageParts(
        images=images,
        profiles=_profiles(content, client, admission, collector, registry.progress_timeout_s),
        puller=puller,
        drivers=drivers,
        workers=workers,
        client=client,
        apart=apart,
        limited_by=_limited_by(config.storage),
    )


def _unpackers(content: ImageContent, workers: UnpackWorkers) -> dict[str, LayerUnpacker]:
    """By storage driver."""
    return {
        part.store.driver: LayerUnpacker(
            snapshots=part, files=content.files, workers=workers, now_ns=content.now_ns
        )
        for part in content.drivers.all()
    }


def admission_rules(registry: Registry) -> Rules:
    """Which images may be pulled, by the configuration."""
    return Rules(
        policy=registry.signature_policy,
        policy_dir=registry.signature_policy_dir,
        bundles=registry.sigstore_bundles,
        verifier_dir=registry.verifier_dir,
        verifier_timeout_s=registry.verifier_timeout_s,
    )


def _profiles(
    content: ImageContent,
    client: RegistryClient,
    admission: Admission,
    collector: Collector,
    limit_s: float,
) -> SecurityProfiles:
    return SecurityProfiles(
        store=collector.profiles,
        content=content,
        client=client,
        admission=admission,
        collector=collector,
        check=pulled_profile,
        limit_s=limit_s,
    )


async def _content(shared: Shared, drivers: SnapshotsByHandler) -> ImageContent:
    storage, stores, fs = shared.config.storage, shared.stores, shared.executors.fs
    additional = await run_in(fs, opened, storage.additional_stores, drivers.default.driver)
    stores.snapshots.lend(additional.layers())
    return ImageContent(
        store=stores.images,
        blobs=stores.blobs,
        files=BlobFiles(storage.root / "blobs"),
        drivers=drivers,
        claims=Claims(),
        fs=fs,
        now_ns=shared.clock.now_ns,
        keep_blobs=storage.keep_blobs,
        additional=additional,
        platforms=_platforms(shared.config.runtime),
    )


def _platforms(runtime: Runtime) -> dict[str, str]:
    """Platforms of handlers that are not this node's."""
    own = host_platform().normal
    return {
        name: handler.platform
        for name, handler in runtime.handlers.items()
        if handler.platform and parse_platform(handler.platform).normal != own
    }


def _limited_by(storage: Storage) -> str:
    if storage.container_limit_bytes:
        return "storage.container_limit_bytes"
    return "storage.allowed_annotations" if storage.allowed_annotations else ""


def _refuse_migration(shared: Shared) -> None:
    to = shared.stores.settings.get(MIGRATION_SETTING)
    if to:
        raise WrongStateError(
            f"a migration of the layers in {shared.config.storage.root} to {to} has not ended; run "
            f"`criagent storage migrate --to {to}` again"
        )


async def _driver(shared: Shared) -> SnapshotDriver:
    """The configured driver, which the root directory remembers before its first snapshot.

    One that remembers none is overlay's, as all were up to 0.2. Nothing is written when nothing
    changes: a full disk gets its space back only later in the start.
    """
    storage, stores = shared.config.storage, shared.stores
    last = stores.settings.get(DRIVER_SETTING) or DEFAULT
    remembered = last if stores.snapshots.all() else ""
    name = chosen(storage.driver, remembered, storage.root, await unknown_layers(shared))
    if name != last:
        await stores.settings.put(DRIVER_SETTING, name)
    if name in _ONE_STORE and name in stores.snapshots.other_drivers():
        raise UnsupportedError(
            f"the driver {name} has snapshots of OCI runtime handlers in {storage.root}; set "
            f'storage.driver = "{last}" again, remove the pods of these handlers and their keys '
            "snapshotter, and start once before the change"
        )
    return driver_class(name)(directory(storage.root, ""), storage, shared.executors.fs)


async def _drivers(shared: Shared, default: SnapshotDriver) -> SnapshotsByHandler:
    """The driver of the root directory, those that handlers have, and those that made what is left.

    Raises UnsupportedError when one that a handler has cannot work.
    """
    stores, fs = shared.stores, shared.executors.fs
    wanted = {
        name: canonical(handler.snapshotter)
        for name, handler in shared.config.runtime.handlers.items()
        if canonical(handler.snapshotter) not in ("", default.name)
    }
    others: dict[str, Snapshots] = {}
    for name in sorted({*wanted.values(), *stores.snapshots.other_drivers()}):
        users = sorted(handler for handler, driver in wanted.items() if driver == name)
        driver = await _other(shared, name, users)
        others[name] = Snapshots(driver, stores.snapshots.of(name), fs)
    return SnapshotsByHandler(
        default=Snapshots(default, stores.snapshots, fs), others=others, drivers=wanted
    )


async def _other(shared: Shared, name: str, users: Sequence[str]) -> SnapshotDriver:
    """The driver of the handlers `users`, prepared; one without users may not work any more."""
    storage, fs = shared.config.storage, shared.executors.fs
    root = directory(storage.root, name)
    try:
        driver = driver_class(name)(root, storage, fs)
        await driver.prepare()
    except (AgentError, OSError) as exc:
        if users:
            raise UnsupportedError(
                f'runtime.handlers.{users[0]}.snapshotter is "{name}": {exc}; or remove the key'
            ) from exc
        log.error("storage_driver_gone", driver=name, error=str(exc))  # noqa: TRY400 - its text
        return GoneDriver(root, storage, fs, name=name, reason=str(exc))
    return driver


async def unknown_layers(shared: Shared) -> Sequence[str]:
    """The drivers that may have made layers which the database does not know, since it is new."""
    if shared.stores.settings.get(DRIVER_SETTING) or shared.stores.snapshots.all():
        return ()
    return await run_in(shared.executors.fs, traces, shared.config.storage.root)


async def _containers_root(shared: Shared, driver: SnapshotDriver) -> ContainersRoot:
    """Where writable layers are, remembered before the first of them is made.

    Raises UnsupportedError, UnavailableError.
    """
    storage, stores = shared.config.storage, shared.stores
    wanted = storage.containers_root
    if wanted and not driver.capabilities.separate_containers:
        raise UnsupportedError(
            f"the storage driver {driver.name} keeps writable layers where the layers of images "
            f"are; remove storage.containers_root ({wanted}), or set another storage.driver"
        )
    written = [stores.snapshots, *map(stores.snapshots.of, stores.snapshots.other_drivers())]
    users = sum(is_writable(snapshot) for part in written for snapshot in part.all())
    claim = Claim.of(stores.settings.get(_CONTAINERS_ROOT_SETTING) or "", wanted, users=users)
    taken = await run_in(shared.executors.fs, take, claim, storage.root)
    if taken.remembered != (stores.settings.get(_CONTAINERS_ROOT_SETTING) or ""):
        await stores.settings.put(_CONTAINERS_ROOT_SETTING, taken.remembered)
    await run_in(shared.executors.fs, taken.mark)
    return taken


def client_settings(registry: Registry, environment: Mapping[str, str]) -> Settings:
    """How registries are reached; the proxies are those of the configuration, else of the
    environment.
    """
    conf = RegistriesFile(Path(registry.registries_conf)) if registry.registries_conf else None
    return Settings(
        hosts=RegistryHosts(HostsDirectory(registry.config_dirs), conf),
        docker_config=registry.docker_config,
        proxies=_proxies(registry, environment),
        auth_dir=registry.namespaced_auth_dir,
        helper_timeout_s=registry.credential_helper_timeout_s,
    )


def _proxies(registry: Registry, environment: Mapping[str, str]) -> ProxySettings:
    proxies = ProxySettings(
        http=registry.http_proxy, https=registry.https_proxy, no_proxy=registry.no_proxy
    )
    return from_environment(environment, proxies)


def _client(registry: Registry, files: BlobFiles, fs: Executor) -> RegistryClient:
    return RegistryClient(
        settings=client_settings(registry, os.environ),
        files=files,
        fs=fs,
        range_bytes=registry.range_bytes,
    )
