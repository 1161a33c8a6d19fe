# SPDX-License-Identifier: Apache-2.0
"""python -m tests.storage.dying DRIVER TOP STATE POINT: a life of an image and a container that
ends by SIGKILL at POINT; exit status 0 = POINT was not reached."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from criagent.base import faults
from tests.storage.ground import Storage
from tests.support.unpack_place import directory, hard, member, tar

LAYERS = (
    tar(directory("d"), member("d/low", b"low"), member("d/gone", b"gone")),
    tar(member("d/.wh.gone"), member("d/high", b"high"), hard("d/hard", "d/low")),
)


async def life(driver: str, top: Path, state: Path, point: str) -> None:
    """Unpack, mount, write, remove."""
    storage = await Storage(top, driver, state).open()
    faults.arm(point)
    image = await storage.image(*LAYERS)
    snapshot = await storage.writable("a", image)
    async with storage.root(snapshot, image) as root:
        (root / "d/new").write_text("new")
    await storage.snapshots.remove(snapshot.key)
    for layer in reversed(image.layers):
        await storage.snapshots.remove(layer.chain_id)
    await storage.snapshots.empty_trash()
    await storage.close()


if __name__ == "__main__":
    asyncio.run(life(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]))
