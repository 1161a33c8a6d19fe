# SPDX-License-Identifier: Apache-2.0
"""A node whose power fails at any moment: what the agent had promised is there, nothing lies.

`tests/node/enter python3 -m pytest tests/power`; POWER_CUTS is the number of cuts for each disk, 12
by default, and POWER_SEED makes the same ones again. One life of pods and images is recorded, then
the disk of each cut is mounted, its agent started as after a boot, and everything that it tells is
compared with what it had answered before the cut.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.power.cuts import MIGRATE, Cuts, after_life, after_migration
from tests.power.journal import BEGIN, END
from tests.power.life import Life, content
from tests.power.node import booted, mounted, recorded_disk, run, serving
from tests.power.wake import GROUNDS, Ground
from tests.support.cri_client import BUSYBOX, DEBIAN

pytestmark = [pytest.mark.root, pytest.mark.timeout(3600)]


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


@pytest.mark.parametrize("ground", GROUNDS, ids=str)
def test_cuts_at_any_moment(ground: Ground, scratch: Path) -> None:
    contents = record(ground, scratch)
    Cuts(ground, scratch).each(after_life(ground, scratch, contents))


def test_cuts_of_a_migration(scratch: Path) -> None:
    """The command goes on where it was, and every image is what it was."""
    ground = GROUNDS[0]
    with recorded_disk(scratch / "fuse", scratch / "journal") as disk:
        run(*ground.mkfs, disk)
        with mounted(disk, 0, scratch):
            with serving(ground.driver) as cri:
                for image in (BUSYBOX, DEBIAN):
                    cri.pull(image)
                contents = {image: content(cri, image) for image in (BUSYBOX, DEBIAN)}
            disk.with_name("mark").write_bytes(BEGIN)
            run(*MIGRATE)
            disk.with_name("mark").write_bytes(END)
    Cuts(ground, scratch).each(after_migration(ground, scratch, contents))
