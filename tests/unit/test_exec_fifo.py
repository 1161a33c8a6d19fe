# SPDX-License-Identifier: Apache-2.0
"""A container that crun has created is let run by one byte; a process with a FIFO stands for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from criagent.base import faults
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.runtime.oci.runtime import OciRuntime, SealedProgram

# As crun's: it opens the FIFO before anyone writes, waits for a byte, and goes on without it.
_INIT = """
import os, select, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
print("created", flush=True)
while not select.select([fd], [], [])[0] or not os.read(fd, 1): pass
os.close(fd)
print("running", flush=True)
sys.stdin.read()
"""
_CRUN = """#!/bin/sh
echo "$@" >> {calls}
[ "$2" = state ] || exit 0
[ -e {fifo} ] && status=created || status=running
echo '{{"pid": {pid}, "status": "'$status'"}}'
"""


class Created:
    """A container that a stand-in for crun has created."""

    def __init__(self, root: Path) -> None:
        self.state = root / "c"
        self.state.mkdir()
        self.fifo, self.calls = self.state / "exec.fifo", root / "calls"
        os.mkfifo(self.fifo)
        self.configure({})
        self.init = subprocess.Popen(
            [sys.executable, "-c", _INIT, str(self.fifo)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.expect("created")
        program = root / "crun"
        program.write_text(_CRUN.format(calls=self.calls, fifo=self.fifo, pid=self.init.pid))
        program.chmod(0o755)
        self.runtime = OciRuntime(
            name="crun",
            program=SealedProgram(program),
            type="crun",
            root=root,
            driver=CgroupDriver.CGROUPFS,
        )

    def configure(self, hooks: dict[str, object]) -> None:
        (self.state / "config.json").write_text(json.dumps({"hooks": hooks, "linux": {}}))

    def expect(self, word: str) -> None:
        assert self.init.stdout is not None
        assert self.init.stdout.readline().strip() == word

    def called(self) -> list[str]:
        """The subcommands of crun that were called."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line.split()[1] for line in lines]

    def end(self) -> None:
        self.init.kill()
        self.init.communicate()
        self.runtime.program.close()


@pytest.fixture
def created(tmp_path: Path) -> Iterator[Created]:
    container = Created(tmp_path)
    yield container
    container.end()
    faults.arm(None)


async def test_start_needs_no_process(created: Created) -> None:
    assert await created.runtime.status("c") == "created"
    created.calls.unlink()
    await created.runtime.start("c")
    created.expect("running")
    assert created.called() == []
    assert await created.runtime.status("c") == "running"


async def test_crun_runs_the_hooks_of_a_start(created: Created) -> None:
    created.configure({"poststart": [{"path": "/bin/true"}]})
    await created.runtime.start("c")
    assert created.called() == ["start"]
    assert created.fifo.exists()


async def test_hooks_of_other_stages_do_not_matter(created: Created) -> None:
    created.configure({"prestart": [{"path": "/bin/true"}], "poststop": [], "poststart": []})
    await created.runtime.start("c")
    created.expect("running")
    assert created.called() == []


async def test_crun_is_asked_about_an_init_that_has_died(created: Created) -> None:
    """Its error names the reason."""
    created.init.kill()
    created.init.wait()
    await created.runtime.start("c")
    assert created.called() == ["start"]


async def test_a_state_without_the_fifo_is_left_to_crun(created: Created) -> None:
    created.fifo.unlink()
    await created.runtime.start("c")
    assert created.called() == ["start"]


async def test_a_start_that_was_cut_short_has_happened(created: Created) -> None:
    """The agent died after the byte and before the FIFO was gone, by which crun says "created"."""
    faults.arm(None, ["container-start:fifo"])
    with pytest.raises(OSError, match="injected"):
        await created.runtime.start("c")
    assert created.fifo.exists()
    assert await created.runtime.status("c") == "running"
    assert not created.fifo.exists()
    created.expect("running")


async def test_an_init_that_cannot_be_looked_at_counts_as_waiting(created: Created) -> None:
    """Without its FIFO it could never be started."""
    created.init.kill()
    created.init.wait()
    assert await created.runtime.status("c") == "created"
    assert created.fifo.exists()


async def test_crun_does_not_wait_for_an_init_that_runs_already(created: Created) -> None:
    """It would, for as long as the FIFO is there."""
    faults.arm(None, ["container-start:fifo"])
    with pytest.raises(OSError, match="injected"):
        await created.runtime.start("c")
    created.expect("running")
    await created.runtime.start("c")
    assert created.called() == ["start"]
    assert not created.fifo.exists()


async def test_a_start_that_was_cut_short_later_has_happened(created: Created) -> None:
    """Init has taken the byte."""
    faults.arm(None, ["container-start:fifo"])
    with pytest.raises(OSError, match="injected"):
        await created.runtime.start("c")
    created.expect("running")
    assert await created.runtime.status("c") == "running"
    assert not created.fifo.exists()
