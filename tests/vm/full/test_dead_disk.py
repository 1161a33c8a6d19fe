# SPDX-License-Identifier: Apache-2.0
# vm: limit=5400 seconds=2000
"""A disk that answers EIO to everything at every verb (dm-flakey), and then is back.

As `tests/fire/test_dead_disk.py` in the test node, which has no device mapper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fire.dead_disk import fails_and_comes_back
from tests.fire.verbs import VERBS
from tests.power.life import LOGS
from tests.power.node import MKFS_EXT4, SIZE, run
from tests.support import agent
from tests.support.units import systemctl

_NAME = "criagent-flaky"


@pytest.fixture(autouse=True)
def nothing_leaks() -> None:
    """The test looks at its own root directory."""


@pytest.fixture(autouse=True)
def no_service(images: None) -> Iterator[None]:
    """The service ends before a test and serves after it."""
    systemctl("stop", "criagent")
    Path(LOGS).mkdir(exist_ok=True)
    yield
    if agent.running():
        agent.stop()
    drop_in = Path("/etc/criagent/config.d/test.toml")
    drop_in.unlink(missing_ok=True)
    systemctl("start", "criagent")


@dataclass(frozen=True)
class FlakyDisk:
    """A device of dm-flakey over a loop device (kernel documentation, dm-flakey)."""

    loop: str
    path: Path = Path("/dev/mapper") / _NAME

    def fail(self) -> None:
        """Down for good: up for 0 seconds, down for an hour."""
        self._change(f"0 {SIZE // 512} flakey {self.loop} 0 0 3600")

    def heal(self) -> None:
        self._change(f"0 {SIZE // 512} linear {self.loop} 0")

    def _change(self, table: str) -> None:
        # What waits to be written goes to the new table; the file system is not asked to settle.
        run("dmsetup", "suspend", "--noflush", "--nolockfs", _NAME)
        run("dmsetup", "load", _NAME, "--table", table)
        run("dmsetup", "resume", _NAME)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FlakyDisk]:
    run("modprobe", "dm-flakey")
    backing = tmp_path / "disk.img"
    with backing.open("wb") as file:
        file.truncate(SIZE)
    loop = run("losetup", "--find", "--show", backing).strip()
    run("dmsetup", "create", _NAME, "--table", f"0 {SIZE // 512} linear {loop} 0")
    made = FlakyDisk(loop)
    run(*MKFS_EXT4, made.path)
    yield made
    run("dmsetup", "remove", "--retry", _NAME)
    run("losetup", "--detach", loop)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_fails_at_a_verb_and_comes_back(
    verb: str, disk: FlakyDisk, tmp_path: Path
) -> None:
    print(fails_and_comes_back(verb, disk, tmp_path))
