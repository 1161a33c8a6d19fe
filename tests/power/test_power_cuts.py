# SPDX-License-Identifier: Apache-2.0
"""A node whose power fails at any moment: what the agent had promised is there, nothing lies.

`tests/node/enter python3 -m pytest tests/power`; POWER_CUTS is the number of cuts for each disk, 12
by default, and POWER_SEED makes the same ones again. One life of pods and images is recorded, then
the disk of each cut is mounted, its agent started as after a boot, and everything that it tells is
compared with what it had answered before the cut.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.power.journal import Journal, Replay
from tests.power.life import LOGS, MAYBE, Life, content
from tests.power.node import SIZE, booted, mounted, recorded_disk, run, serving
from tests.power.wake import GROUNDS, Ground, after_cut
from tests.support import agent
from tests.support.cri_client import BUSYBOX, DEBIAN

pytestmark = [pytest.mark.root, pytest.mark.timeout(3600)]

CUTS = int(os.environ.get("POWER_CUTS", "12"))
SEED = int(os.environ.get("POWER_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
BEGIN, END = b"the life begins", b"the life ends"


@pytest.fixture(scope="module", autouse=True)
def registry() -> Iterator[None]:
    """The fixture registry, if the node has not got it by `tests/node/up`."""
    assert os.geteuid() == 0, "these tests need root in a test node; see tests/node/up"
    agent.stop()
    Path(LOGS).mkdir(exist_ok=True)
    yield
    agent.start().close()


def record(ground: Ground, scratch: Path) -> dict[str, str]:
    """One life on a recorded disk; returns the content of each image."""
    with recorded_disk(scratch / "fuse", scratch / "journal") as disk:
        run(*ground.mkfs, disk)
        mark = disk.with_name("mark")
        with booted(disk, ground.driver, 0, scratch) as cri:
            for image in (BUSYBOX, DEBIAN):
                cri.pull(image)
            contents = {image: content(cri, image) for image in (BUSYBOX, DEBIAN)}
            for image in contents:
                cri.remove_image(image)
            mark.write_bytes(BEGIN)
            Life(cri, mark.write_text).live()
            mark.write_bytes(END)
    return contents


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Memory for the disks of one test."""
    path = Path("/dev/shm/power")
    path.mkdir()
    yield path
    run("rm", "-rf", "--one-file-system", path)


@pytest.mark.parametrize("ground", GROUNDS, ids=str)
def test_cuts_at_any_moment(ground: Ground, scratch: Path) -> None:
    contents = record(ground, scratch)

    def wake(disk: Path, number: int, marks: list[bytes]) -> list[str]:
        with booted(disk, ground.driver, number, scratch) as cri:
            return after_cut(cri, marks, contents)

    cut_off(ground, scratch, wake)


def test_cuts_of_a_migration(scratch: Path) -> None:
    """The command goes on where it was, and every image is what it was."""
    ground = GROUNDS[0]
    migrate = [sys.executable, "-m", "criagent", "storage", "migrate", "--to", "native"]
    with recorded_disk(scratch / "fuse", scratch / "journal") as disk:
        run(*ground.mkfs, disk)
        with mounted(disk, 0, scratch):
            with serving(ground.driver) as cri:
                for image in (BUSYBOX, DEBIAN):
                    cri.pull(image)
                contents = {image: content(cri, image) for image in (BUSYBOX, DEBIAN)}
            disk.with_name("mark").write_bytes(BEGIN)
            run(*migrate)
            disk.with_name("mark").write_bytes(END)

    asked = [json.dumps([f"image {image}", MAYBE]).encode() for image in contents]

    def wake(disk: Path, number: int, _: list[bytes]) -> list[str]:
        with mounted(disk, number, scratch):
            run(*migrate)
            with serving("native") as cri:
                there = {tag for image in cri.images() for tag in image.repo_tags}
                found = [f"{lost} is lost" for lost in contents if lost not in there]
                return found + after_cut(cri, asked, contents)

    cut_off(ground, scratch, wake)


def cut_off(
    ground: Ground, scratch: Path, wake: Callable[[Path, int, list[bytes]], list[str]]
) -> None:
    """Wake the node of each cut by its disk, its number and the marks before it."""
    journal = Journal.open(scratch / "journal")
    replay = Replay(journal, scratch / "durable", SIZE)
    begin, end = replay.position(BEGIN), replay.position(END)
    chance = random.Random(SEED)
    cuts = sorted(chance.randrange(begin + 1, end + 1) for _ in range(CUTS))
    failures, lost = [], 0
    for number, cut in enumerate(cuts, 1):
        lost += replay.disk(cut, chance, scratch / "cut")
        marks = [mark for mark in replay.marks(cut) if mark not in (BEGIN, END)]
        found = wake(scratch / "cut", number, marks)
        check = subprocess.run(
            [*ground.check, scratch / "cut"], capture_output=True, text=True, check=False
        )
        if check.returncode:
            found.append(f"{ground.check[0]}: {(check.stdout + check.stderr)[-500:]}")
        failures += [f"cut {cut} after {marks[-1:]}: {problem}" for problem in found]
    journal.close()
    print(f"{ground}: {CUTS} cuts among {end - begin} entries, {lost} writes lost, seed {SEED}")
    assert not failures, f"POWER_SEED={SEED}\n" + "\n".join(failures)
