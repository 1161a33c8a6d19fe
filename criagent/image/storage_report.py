# SPDX-License-Identifier: Apache-2.0
"""What `criagent storage info` shows, as one JSON document."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from criagent.base.aio import run_in
from criagent.image.collect import blobs_of
from criagent.image.content import ImageContent
from criagent.image.snapshots.snapshots import Snapshots
from criagent.kernel.file_systems import file_system
from criagent.model.image import Image


async def storage_report(content: ImageContent) -> dict[str, Any]:
    """Each storage driver, its file system, and what each image takes of it, in bytes.

    `shared_bytes` of an image are those of layers that other images have too.
    """
    drivers = content.drivers
    default = await _driver(drivers.default, content.fs)
    default["usage"]["blobs"] = sum(blob.size for blob in content.blobs.all())
    return {
        **default,
        "other_drivers": [
            {
                **await _driver(part, content.fs),
                "handlers": sorted(h for h, name in drivers.drivers.items() if name == driver),
            }
            for driver, part in drivers.others.items()
        ],
        "images": _images(content),
        "additional_stores": [
            {"root": str(store.root), "images": len(store.images), "problem": store.problem}
            for store in content.additional.stores
        ],
    }


async def _driver(snapshots: Snapshots, fs: Executor) -> dict[str, Any]:
    apart, rows = snapshots.containers_root, snapshots.store.all()
    return {
        "driver": snapshots.driver,
        "root": str(snapshots.root),
        "file_system": dataclasses.asdict(await run_in(fs, file_system, snapshots.root)),
        "containers_root": str(apart),
        "containers_file_system": dataclasses.asdict(await run_in(fs, file_system, apart)),
        "capabilities": {
            "selinux_labels": snapshots.capabilities.selinux_labels,
            "shared_page_cache": snapshots.capabilities.shared_page_cache,
            "size_limits": snapshots.capabilities.size_limits,
        },
        "facts": dict(await snapshots.facts()),
        "problem": await snapshots.health(),
        "usage": {
            "layers": sum(row.used_bytes for row in rows if row.committed),
            "containers": sum(row.used_bytes for row in rows if not row.committed),
        },
    }


def _images(content: ImageContent) -> list[dict[str, Any]]:
    images: Sequence[Image] = content.store.all()
    users = Counter(chain for image in images for chain in {x.chain_id for x in image.layers})
    sizes: Counter[str] = Counter()  # of all drivers together
    for row in content.drivers.every():
        sizes[row.key] += row.used_bytes
    blobs = {blob.digest: blob.size for blob in content.blobs.all()}
    found = []
    for image in images:
        chains = {layer.chain_id for layer in image.layers}
        unpacked = sum(sizes[chain] for chain in chains)
        shared = sum(sizes[chain] for chain in chains if users[chain] > 1)
        found.append(
            {
                "id": image.id,
                "names": list(image.all_tags or image.all_digests),
                "layers": len(image.layers),
                "unpacked_bytes": unpacked,
                "shared_bytes": shared,
                "unique_bytes": unpacked - shared,
                "blob_bytes": sum(blobs.get(digest, 0) for digest in blobs_of(image)),
            }
        )
    return sorted(found, key=_unpacked, reverse=True)


def _unpacked(image: dict[str, Any]) -> int:
    size: int = image["unpacked_bytes"]
    return size
