# SPDX-License-Identifier: Apache-2.0
"""python3 -m tests.power.vm_cuts BOOT WORK DATA: QEMU killed at random moments, again and again.

`make vm-power-cuts` calls it by `tests/vm/run`, in a mount namespace of its own. POWER_CUTS is the
number of cuts, POWER_SEED the seed of their moments. After the kill the disk gets what had been
flushed and a random choice of later writes, as of a disk with a write cache that has lost its
power. The next machine goes on from its saved state with that disk and another boot ID, looks at
what is there, and lives until the next cut.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from tests.power.journal import Journal, Replay
from tests.power.node import SIZE
from tests.power.vm import Chain, Moment, Sessions
from tests.power.wake import GROUNDS

CUTS = int(os.environ.get("POWER_CUTS", "12"))
SEED = int(os.environ.get("POWER_SEED", "0")) or random.SystemRandom().randrange(1 << 32)


class PowerCuts:
    """All cuts, one after the other."""

    def __init__(self, sessions: Sessions, work: Path) -> None:
        self._sessions = sessions
        self._work = work
        self.failures: list[str] = []
        self.lost = 0

    def run(self) -> None:
        """Each ground in turn until the last cut, then each once more, to wake up."""
        chance = random.Random(SEED)
        names = os.environ.get("GROUND", "")
        chains = [Chain(ground) for ground in GROUNDS if names in str(ground)]
        for number in range(1, CUTS + 1):
            self._next(chains[number % len(chains)], number, Moment.of(chance), chance)
            if self.failures:
                return
        for number, chain in enumerate(chains, CUTS + 1):
            if chain.image is not None:
                self._next(chain, number, None, chance)

    def _next(
        self, chain: Chain, number: int, moment: Moment | None, chance: random.Random
    ) -> None:
        begin = time.monotonic()
        journal = self._work / "journal"
        self.failures += self._sessions.lead(chain, number, moment, journal)
        what = "woken up"
        if moment is not None:
            lost, entries = self._cut(chain, journal, chance)
            self.lost += lost
            what = f"{lost} of {entries} writes lost after {chain.marks[-1:]}"
        seconds = time.monotonic() - begin
        life = moment.life if moment is not None else "no life"
        print(f"machine {number}: {chain.ground}, {life}: {what}, {seconds:.0f} s", flush=True)

    def _cut(self, chain: Chain, path: Path, chance: random.Random) -> tuple[int, int]:
        """Make the chain's next disk; returns how many writes were lost, of how many."""
        journal = Journal.open(path)
        replay = Replay(journal, self._work / "durable", SIZE, chain.image)
        following = self._work / f"{str(chain.ground).replace('/', '-')}.next"
        lost = replay.disk(len(replay), chance, following)
        journal.close()
        chain.image = following.rename(following.with_suffix(".img"))
        return lost, len(replay)


def main(boot: str, work: str, data: str) -> int:
    cuts = PowerCuts(Sessions(Path(boot), Path(work), Path(data)), Path(work))
    cuts.run()
    print(f"{CUTS} power cuts of a VM, {cuts.lost} writes lost, seed {SEED}")
    for failure in cuts.failures:
        print(f"FAILED (POWER_SEED={SEED}): {failure}")
    return 1 if cuts.failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
