# SPDX-License-Identifier: Apache-2.0
"""Power cuts at random positions of one recorded life, each woken up in the test node.

POWER_CUTS is their number, 12 by default; POWER_SEED makes the same ones again.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.power.journal import BEGIN, END, Journal, Replay
from tests.power.life import MAYBE
from tests.power.node import SIZE, booted, configuration, mounted, run, serving
from tests.power.wake import Ground, after_cut
from tests.support import agent

CUTS = int(os.environ.get("POWER_CUTS", "12"))
SEED = int(os.environ.get("POWER_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
MIGRATE = (sys.executable, "-m", "criagent", "storage", "migrate", "--to", "native")

Wake = Callable[[Path, int, list[bytes]], list[str]]
"""Wakes up a node by its disk, the number of the cut and the marks before it; returns what is
wrong.
"""


def after_life(ground: Ground, scratch: Path, contents: dict[str, str]) -> Wake:
    """Of a cut in a life of pods and images, which have these contents."""

    def wake(disk: Path, number: int, marks: list[bytes]) -> list[str]:
        with booted(disk, ground.driver, number, scratch) as cri:
            return after_cut(cri, marks, contents)

    return wake


def after_migration(ground: Ground, scratch: Path, contents: dict[str, str]) -> Wake:
    """Of a cut in a migration to native: it is called again, and all images are there."""
    asked = [json.dumps([f"image {image}", MAYBE]).encode() for image in contents]

    def wake(disk: Path, number: int, _: list[bytes]) -> list[str]:
        agent.configure(configuration(ground.driver))
        with mounted(disk, number, scratch):
            run(*MIGRATE)
            with serving("native") as cri:
                there = {tag for image in cri.images() for tag in image.repo_tags}
                found = [f"{lost} is lost" for lost in contents if lost not in there]
                return found + after_cut(cri, asked, contents)

    return wake


class Cuts:
    """The cuts of the journal in `scratch`."""

    def __init__(self, ground: Ground, scratch: Path, journal: Path | None = None) -> None:
        """`journal` is another place of it."""
        self._ground = ground
        self._scratch = scratch
        self._journal = journal or scratch / "journal"

    def each(self, wake: Wake) -> None:
        """Wake up the node of each cut. Raises AssertionError with all that is wrong."""
        journal = Journal.open(self._journal)
        replay = Replay(journal, self._scratch / "durable", SIZE)
        begin, end = replay.position(BEGIN), replay.position(END)
        chance = random.Random(SEED)
        cuts = sorted(chance.randrange(begin + 1, end + 1) for _ in range(CUTS))
        disk = self._scratch / "cut"
        failures, lost = [], 0
        for number, cut in enumerate(cuts, 1):
            lost += replay.disk(cut, chance, disk)
            marks = [mark for mark in replay.marks(cut) if mark not in (BEGIN, END)]
            found = [*wake(disk, number, marks), *self._checked(disk)]
            failures += [f"cut {cut} after {marks[-1:]}: {problem}" for problem in found]
        journal.close()
        entries = end - begin
        print(
            f"{self._ground}: {CUTS} cuts among {entries} entries, {lost} writes lost, seed {SEED}"
        )
        assert not failures, f"POWER_SEED={SEED}\n" + "\n".join(failures)

    def _checked(self, disk: Path) -> list[str]:
        command = self._ground.check
        check = subprocess.run([*command, disk], capture_output=True, text=True, check=False)
        if not check.returncode:
            return []
        return [f"{command[0]}: {(check.stdout + check.stderr)[-500:]}"]
