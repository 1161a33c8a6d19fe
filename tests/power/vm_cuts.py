# SPDX-License-Identifier: Apache-2.0
"""python3 -m tests.power.vm_cuts BOOT WORK DATA: QEMU killed at random moments, again and again.

`make vm-power-cuts` calls it by `tests/vm/run`, in a mount namespace of its own. POWER_CUTS is the
number of cuts, POWER_SEED the seed of their moments. The root directory of the VM's agent is on a
disk of its own, whose backing file `disk.py` records: QEMU passes the flushes of the guest on as
fsync(2). After the kill the disk gets what had been flushed and a random choice of later writes,
as of a disk with a write cache that has lost its power. The next machine goes on from its saved
state with that disk and another boot ID, looks at what is there, and lives until the next cut.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.nodes.vm.machine import BrokenError, Machine, overlay, print_console, saved_state
from tests.power.journal import Journal, Replay
from tests.power.node import SIZE, recorded_disk
from tests.power.wake import GROUNDS, Ground

CUTS = int(os.environ.get("POWER_CUTS", "12"))
SEED = int(os.environ.get("POWER_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
_LIMIT_S = 1800.0  # for a machine to wake up, or for a life
_MARKS = 48  # of one life
_LATER_S = {"life": 6.0, "migration": 40.0}  # a cut is so much later than its mark, at most


@dataclass
class Chain:
    """The disk of one ground from cut to cut."""

    ground: Ground
    image: Path | None = None
    marks: list[str] = field(default_factory=list)
    contents: dict[str, str] = field(default_factory=dict)
    migrating: bool = False


@dataclass(frozen=True)
class Moment:
    """When the power fails: `later_s` after mark number `mark`, or after the migration began."""

    life: str
    mark: int
    later_s: float

    @classmethod
    def of(cls, chance: random.Random) -> Moment:
        life = chance.choice(("life", "life", "life", "migration"))
        return cls(life, chance.randrange(_MARKS), chance.uniform(0, _LATER_S[life]))


class Session:
    """One machine from its start to its cut, or to its end without a `moment`."""

    def __init__(self, machine: Machine, chain: Chain, number: int, moment: Moment | None) -> None:
        self._machine = machine
        self._chain = chain
        self._number = number
        self._moment = moment
        self.failures: list[str] = []

    def lead(self) -> None:
        """Return at the moment. Raises BrokenError, TimeoutError when it does not come."""
        self._machine.control.sendall(f"go {time.time():.3f}\n".encode())
        self._machine.follow(self._told, time.monotonic() + _LIMIT_S)
        if self._moment is not None:
            self._live_on(self._moment.later_s)
        self._machine.drain()

    def _live_on(self, seconds: float) -> None:
        """Marks are still taken until the power fails."""
        try:
            self._machine.follow(self._told_after, time.monotonic() + seconds)
        except TimeoutError:
            return

    def _told_after(self, line: str) -> bool:
        self._told(line)
        return line.startswith("power end")

    def _told(self, line: str) -> bool:
        word, _, rest = line.partition(" ")
        if word == "exit":
            if rest != "0" or self._moment is not None:
                raise BrokenError(f"the script in the machine ended with {rest}")
            return True
        if word != "power":
            return False
        what, _, text = rest.partition(" ")
        answer = self._answer(what, json.loads(text))
        self._machine.control.sendall(json.dumps(answer).encode() + b"\n")
        if self._moment is None:
            return False
        if self._moment.life == "migration":
            return what == "migrating"
        return what == "end" or (what == "mark" and len(self._chain.marks) > self._moment.mark)

    def _answer(self, what: str, value: Any) -> object:
        chain = self._chain
        match what:
            case "hello":
                return self._order()
            case "found":
                self.failures += value
            case "contents":
                chain.contents = value
            case "lives":
                chain.marks, chain.migrating = [], False
            case "mark":
                chain.marks.append(value)
            case "migrating":
                chain.migrating = True
        return None

    def _order(self) -> dict[str, object]:
        ground = self._chain.ground
        return {
            "number": self._number,
            "driver": ground.driver,
            "mkfs": ground.mkfs,
            "check": ground.check,
            "contents": self._chain.contents,
            "marks": self._chain.marks,
            "migrating": self._chain.migrating,
            "life": "" if self._moment is None else self._moment.life,
        }


class PowerCuts:
    """All sessions, one after the other."""

    def __init__(self, boot: Path, work: Path, data: Path) -> None:
        self._boot = boot
        self._work = work
        self._data = data
        self._state = saved_state(boot, 4)
        self.failures: list[str] = []
        self.lost = 0

    def run(self) -> None:
        """Each ground in turn until the last cut, then each once more, to wake up."""
        chance = random.Random(SEED)
        names = os.environ.get("GROUND", "")
        chains = [Chain(ground) for ground in GROUNDS if names in str(ground)]
        for number in range(1, CUTS + 1):
            self._session(chains[number % len(chains)], number, Moment.of(chance), chance)
            if self.failures:
                return
        for number, chain in enumerate(chains, CUTS + 1):
            if chain.image is not None:
                self._session(chain, number, None, chance)

    def _session(
        self, chain: Chain, number: int, moment: Moment | None, chance: random.Random
    ) -> None:
        begin = time.monotonic()
        disks = [
            overlay(self._state / "disk.qcow2", self._work / "root.qcow2"),
            self._data,
            overlay(self._work / "payload.img", self._work / "this-payload.qcow2"),
        ]
        journal, console = self._work / "journal", self._work / "console"
        with recorded_disk(self._work / "fuse", journal, chain.image) as disk:
            disks.append(disk)
            with Machine(self._boot, disks, console, self._state / "memory") as machine:
                session = Session(machine, chain, number, moment)
                try:
                    session.lead()
                except (BrokenError, TimeoutError) as failure:
                    session.failures.append(f"session {number}: {failure!r}")
                    print_console(console)
        what = "woken up"
        if moment is not None:
            lost, entries = self._cut(chain, journal, chance)
            self.lost += lost
            what = f"{lost} of {entries} writes lost after {chain.marks[-1:]}"
        self.failures += [f"{chain.ground}: {failure}" for failure in session.failures]
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
    cuts = PowerCuts(Path(boot), Path(work), Path(data))
    cuts.run()
    print(f"{CUTS} power cuts of a VM, {cuts.lost} writes lost, seed {SEED}")
    for failure in cuts.failures:
        print(f"FAILED (POWER_SEED={SEED}): {failure}")
    return 1 if cuts.failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
