# SPDX-License-Identifier: Apache-2.0
"""The life of an image and its container with one storage driver, in a process of its own that
dies at one point of it: `python3 -m tests.storage.life DIRECTORY STATE DRIVER POINT`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from criagent.base import faults
from tests.storage.ground import Storage
from tests.support.unpack_place import directory, member, tar

LAYERS = (
    tar(directory("d"), member("d/low", b"low"), member("d/gone", b"gone")),
    tar(member("d/.wh.gone"), member("d/high", b"high")),
)


async def life(storage: Storage, limit_bytes: int = 0) -> None:
    """Pull, run, remove, remove the image; begins after `prepare` and leaves nothing."""
    image = await storage.image(*LAYERS)
    snapshot = await storage.snapshots.create_container(
        "a" * 64, parent=image.layers[-1].chain_id, created_at_ns=1, limit_bytes=limit_bytes
    )
    async with storage.root(snapshot, image) as root:
        (root / "d/written").write_text("written")
        assert sorted(path.name for path in (root / "d").iterdir()) == ["high", "low", "written"]
    await storage.snapshots.remove(snapshot.key)
    await storage.snapshots.empty_trash()
    await storage.images.delete(image.id)
    for layer in reversed(image.layers):
        await storage.snapshots.remove(layer.chain_id)
    await storage.snapshots.empty_trash()


async def _main(top: Path, state: Path, driver: str, point: str) -> None:
    storage = await Storage(top, driver, state).open()
    faults.arm(point)
    await life(storage, 1 << 20)
    await storage.close()


if __name__ == "__main__":
    place, state, driver, point = sys.argv[1:]
    asyncio.run(_main(Path(place), Path(state), driver, point))
