# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at every point of a driver that has points: the next start finds its way."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

from criagent.image.snapshots.drivers.available import DRIVERS
from criagent.kernel.mount import mountinfo
from criagent.process.child import Options, run
from tests.storage.dying import LAYERS
from tests.storage.ground import Storage, file_system
from tests.support.unpack_place import listed

pytestmark = pytest.mark.root

TOP = Path(__file__).parents[2]
REACH = re.compile(r'faults\.reach\("(storage-(erofs|fuse-overlayfs):[^"]+)"\)')


def points() -> list[tuple[str, str]]:
    """The points of these drivers, each with its driver."""
    source = TOP / "criagent/image/snapshots/drivers"
    found = {match for file in source.rglob("*.py") for match in REACH.findall(file.read_text())}
    return sorted((driver, point) for point, driver in found if driver in DRIVERS)


@pytest.mark.parametrize(("driver", "point"), points())
async def test_a_killed_driver_loses_and_leaves_nothing(
    driver: str, point: str, tmp_path: Path
) -> None:
    if point == "storage-erofs:verity-enabled":
        pytest.skip("needs fs-verity: tests/storage/test_erofs.py passes it")
    state = tmp_path / "state"
    state.mkdir()
    with file_system(tmp_path / "disk", driver) as top:
        argv: list[str | Path] = [sys.executable, "-m", "tests.storage.dying"]
        argv += [driver, top, state, point]
        ended = await run(argv, limit_s=60, options=Options(cwd=TOP))
        assert ended.status == -signal.SIGKILL, ended.errors
        storage = await Storage(top, driver, state).open()
        for row in storage.rows.all():  # as the start of the agent does
            if not row.committed:
                await storage.snapshots.remove(row.key)
        await storage.snapshots.sweep()
        assert all(problem == "" for problem in await storage.problems())
        image = await storage.image(*LAYERS)
        snapshot = await storage.writable("b", image)
        async with storage.root(snapshot, image) as root:
            assert listed(root) == {"d": "/", "d/low": "low", "d/high": "high", "d/hard": "low"}
        await storage.snapshots.remove(snapshot.key)
        for layer in reversed(image.layers):
            await storage.snapshots.remove(layer.chain_id)
        await storage.snapshots.empty_trash()
        await storage.close()
        assert storage.directories() == []
        below = [entry.target for entry in mountinfo() if entry.target.startswith(f"{top}/")]
        assert [target for target in below if not target.startswith(f"{top}/mounts")] == []
