# SPDX-License-Identifier: Apache-2.0
"""Where the content of images is: rows, blobs and snapshots, and what of it is claimed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

from criagent.image.additional_stores import AdditionalStores
from criagent.image.blobs import BlobFiles
from criagent.image.claims import Claims
from criagent.image.snapshots.by_handler import SnapshotsByHandler
from criagent.image.snapshots.snapshots import Snapshots
from criagent.store.blobs import BlobStore
from criagent.store.images import ImageStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageContent:
    """What pulls, imports, collections and checks share. Files are changed in `fs`."""

    store: ImageStore
    blobs: BlobStore
    files: BlobFiles
    drivers: SnapshotsByHandler
    claims: Claims  # of pulls and imports, on blobs
    fs: Executor
    now_ns: Callable[[], int]
    keep_blobs: bool = True  # of unpacked layers
    additional: AdditionalStores = field(default_factory=AdditionalStores)
    platforms: Mapping[str, str] = field(default_factory=dict)  # by handler, if not this node's

    @property
    def snapshots(self) -> Snapshots:
        """Those of storage.driver."""
        return self.drivers.default
