"""Threads and tables: what every other part stands on."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from criagent.process.priority import raise_new_thread
from criagent.store.addresses import AddressStore
from criagent.store.blobs import BlobStore
from criagent.store.containers import ContainerStore
from criagent.store.db import Database
from criagent.store.images import ImageStore
from criagent.store.sandboxes import SandboxStore
from criagent.store.settings import SettingStore
from criagent.store.snapshots import SnapshotStore


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Executors:
    """The threads of the daemon; the database has its own."""

    net: ThreadPoolExecutor
    fs: ThreadPoolExecutor
    counting: ThreadPoolExecutor

    @classmethod
    def start(cls) -> Executors:
        """One thread for netlink and nftables, a few for files, one that counts files."""
        return cls(
            net=ThreadPoolExecutor(1, "net", initializer=raise_new_thread),
            fs=ThreadPoolExecutor(4, "fs", initializer=raise_new_thread),
            counting=ThreadPoolExecutor(1, "counting", initializer=raise_new_thread),
        )

    def shutdown(self) -> None:
        """Wait for what runs."""
        self.net.shutdown()
        self.fs.shutdown()
        self.counting.shutdown()


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
