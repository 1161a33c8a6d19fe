# SPDX-License-Identifier: Apache-2.0
"""What all parts share: configuration, tables, threads, time, owners of work."""

from __future__ import annotations

import asyncio
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from criagent.config.sections import Config
from criagent.process.priority import pool
from criagent.runtime.container.keys import (
    Checkpoints,
    ContainerCreations,
    Endings,
    Starts,
    shown_start,
)
from criagent.runtime.node.clock import Clock, Identities, boot_id
from criagent.runtime.verbs.reopen_log import Reopenings
from criagent.runtime.verbs.run_sandbox import SandboxCreations
from criagent.store.addresses import AddressStore
from criagent.store.blobs import BlobStore
from criagent.store.containers import ContainerStore
from criagent.store.db import Database
from criagent.store.images import ImageStore
from criagent.store.sandboxes import SandboxStore
from criagent.store.settings import SettingStore
from criagent.store.snapshots import SnapshotStore

_ENDLESS_S = 10 * 365 * 24 * 3600.0  # a stop lasts as long as its grace period


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Executors:
    """The threads of the daemon; the database has its own."""

    net: ThreadPoolExecutor
    fs: ThreadPoolExecutor
    counting: ThreadPoolExecutor
    checkpoints: ThreadPoolExecutor

    @classmethod
    def start(cls) -> Executors:
        """One thread for netlink and nftables, a few for files, one that counts files, and one for
        each checkpoint at a time.
        """
        return cls(
            net=pool(1, "net"),
            fs=pool(4, "fs"),
            counting=pool(1, "counting"),
            checkpoints=pool(4, "checkpoints"),
        )

    def shutdown(self) -> None:
        """Wait for what runs."""
        self.net.shutdown()
        self.fs.shutdown()
        self.counting.shutdown()
        self.checkpoints.shutdown()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """Every table."""

    db: Database
    sandboxes: SandboxStore
    containers: ContainerStore
    images: ImageStore
    snapshots: SnapshotStore
    blobs: BlobStore
    addresses: AddressStore
    settings: SettingStore

    @classmethod
    def open(cls, path: Path) -> Stores:
        """Open the database. Raises CorruptError."""
        db = Database.open(path)
        snapshots, blobs = SnapshotStore(db), BlobStore(db)
        return cls(
            db=db,
            sandboxes=SandboxStore(db),
            containers=ContainerStore(db),
            images=ImageStore(db, snapshots, blobs),
            snapshots=snapshots,
            blobs=blobs,
            addresses=AddressStore(db),
            settings=SettingStore(db),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Work in progress, by kind."""

    sandbox_creations: SandboxCreations
    container_creations: ContainerCreations
    starts: Starts
    endings: Endings
    reopenings: Reopenings
    checkpoints: Checkpoints

    @classmethod
    def none(cls, create_timeout_s: float) -> Work:
        """No work. A creation may take `create_timeout_s`."""
        limit_s, setting = create_timeout_s, "runtime.create_timeout_s"
        return cls(
            sandbox_creations=SandboxCreations(
                limit_s=limit_s, noun="sandbox", setting=setting, show=lambda name: name.key
            ),
            container_creations=ContainerCreations(
                limit_s=limit_s, noun="container", setting=setting
            ),
            starts=Starts(limit_s=_ENDLESS_S, show=shown_start),
            endings=Endings(limit_s=_ENDLESS_S),
            checkpoints=Checkpoints(limit_s=_ENDLESS_S),
            reopenings=Reopenings(limit_s=limit_s, noun="log of container", setting=setting),
        )

    async def drain(self, limit_s: float) -> None:
        """Finish it within `limit_s`, cancel what is left and await its undo."""
        await asyncio.gather(
            self.sandbox_creations.drain(limit_s),
            self.container_creations.drain(limit_s),
            self.starts.drain(limit_s),
            self.endings.drain(limit_s),
            self.reopenings.drain(limit_s),
            self.checkpoints.drain(limit_s),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all parts share."""

    config: Config
    stores: Stores
    executors: Executors
    clock: Clock
    boot_id: str
    identities: Identities
    work: Work

    @classmethod
    def of(cls, config: Config, stores: Stores, executors: Executors) -> Shared:
        """The shared parts of this boot."""
        clock, boot = Clock(), boot_id()
        return cls(
            config=config,
            stores=stores,
            executors=executors,
            clock=clock,
            boot_id=boot,
            identities=Identities(clock, boot),
            work=Work.none(config.runtime.create_timeout_s),
        )
