# SPDX-License-Identifier: Apache-2.0
"""The VM whose power is cut, from its start on a recorded disk to a chosen moment.

The root directory of its agent is on a disk of its own, whose backing file `disk.py` records: QEMU
passes the flushes of the guest on as fsync(2). What runs in it is `vm_guest.py`.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.nodes.vm.machine import BrokenError, Machine, overlay, print_console, saved_state
from tests.power.journal import BEGIN, END
from tests.power.node import recorded_disk
from tests.power.wake import Ground

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

    @classmethod
    def end(cls, life: str) -> Moment:
        """When all of that life has been led."""
        return cls(life, 1 << 30, _LIMIT_S)


class Session:
    """One machine from its start to its cut, or to its end without a `moment`."""

    def __init__(
        self, machine: Machine, chain: Chain, number: int, moment: Moment | None, marks: Path
    ) -> None:
        """`marks` is the file of the recorded disk that puts marks into its journal."""
        self._machine = machine
        self._chain = chain
        self._number = number
        self._moment = moment
        self._marks = marks
        self._ended = False
        self.failures: list[str] = []

    def lead(self) -> None:
        """Return at the moment. Raises BrokenError, TimeoutError when it does not come."""
        self._machine.control.sendall(f"go {time.time():.3f}\n".encode())
        self._machine.follow(self._take, time.monotonic() + _LIMIT_S)
        if self._moment is not None and not self._ended:
            self._live_on(self._moment.later_s)
        self._machine.drain()

    def _live_on(self, seconds: float) -> None:
        """Marks are still taken until the power fails."""
        try:
            self._machine.follow(self._take_after, time.monotonic() + seconds)
        except TimeoutError:
            return

    def _take_after(self, line: str) -> bool:
        self._take(line)
        return line.startswith("power end")

    def _take(self, line: str) -> bool:
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
                if self._life == "life":
                    self._marks.write_bytes(BEGIN)
            case "mark":
                chain.marks.append(value)
                self._marks.write_text(value)
            case "migrating":
                chain.migrating = True
                self._marks.write_bytes(BEGIN)
            case "end":
                self._ended = True
                self._marks.write_bytes(END)
        return None

    @property
    def _life(self) -> str:
        return "" if self._moment is None else self._moment.life

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
            "life": self._life,
        }


class Sessions:
    """Machines, one after the other; each goes on from the saved state of one that has booted."""

    def __init__(self, boot: Path, work: Path, data: Path) -> None:
        self._boot = boot
        self._work = work
        self._data = data
        self._state = saved_state(boot, 4)

    def lead(self, chain: Chain, number: int, moment: Moment | None, journal: Path) -> list[str]:
        """Record one machine's disk in `journal` and kill it; returns what was wrong."""
        disks = [
            overlay(self._state / "disk.qcow2", self._work / "root.qcow2"),
            self._data,
            overlay(self._work / "payload.img", self._work / "this-payload.qcow2"),
        ]
        console = self._work / "console"
        with recorded_disk(self._work / "fuse", journal, chain.image) as disk:
            disks.append(disk)
            with Machine(self._boot, disks, console, self._state / "memory") as machine:
                session = Session(machine, chain, number, moment, disk.with_name("mark"))
                try:
                    session.lead()
                except (BrokenError, TimeoutError) as failure:
                    session.failures.append(f"session {number}: {failure!r}")
                    print_console(console)
        return [f"{chain.ground}: {failure}" for failure in session.failures]
