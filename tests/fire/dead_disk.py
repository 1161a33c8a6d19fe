# SPDX-License-Identifier: Apache-2.0
"""The disk of the agent's root directory answers EIO to everything, during a verb; then it is back.

The file system gives up (ext4 ends its journal), so the way back is the one of a reboot: everything
is killed, the disk is mounted again, and the agent starts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from tests.fire.verbs import NODE_FAULTS, VERBS, Code, lists, outcome
from tests.power.life import LOGS, content
from tests.power.node import ROOT, RUN, configuration, mounted, run
from tests.power.wake import left_in_root
from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, api
from tests.support.pods import Pods
from tests.support.waiting import until

_MONITOR = "conmon"


class Disk(Protocol):
    """A block device, or a file for one, with an ext4."""

    @property
    def path(self) -> Path: ...

    def fail(self) -> None: ...

    def heal(self) -> None: ...


def fails_and_comes_back(verb: str, disk: Disk, scratch: Path) -> str:
    """The whole of it for one verb; returns how its call ended while the disk failed."""
    with mounted(disk.path, 1, scratch):
        cri = agent.start(configuration("overlay"))
        try:
            cri.pull(BUSYBOX, timeout=300)
            expected = content(cri, BUSYBOX)
            pods = Pods(cri, Path(LOGS), "dead")
            ended = _ended(pods)
            call = VERBS[verb](pods)
            (sandbox,) = {one.pod_sandbox_id for one in cri.containers() if one.id == ended}
            disk.fail()
            found = outcome(call.make)
            assert found.code in {Code.OK, *NODE_FAULTS}, found
            for look in lists(cri, ended, sandbox):
                seen = outcome(look)
                assert seen.code in {Code.OK, *NODE_FAULTS}, seen
            assert agent.running()
        finally:
            disk.heal()
            cri.close()
            end_everything()
    with mounted(disk.path, 2, scratch):
        cri = agent.start(configuration("overlay"))
        try:
            _whole(cri, ended, expected)
        finally:
            cri.close()
            agent.stop()
    return f"{verb}: {found.code.name} {found.text}"


def _ended(pods: Pods) -> str:
    """A container that has ended with code 3."""
    ended = pods.running("sh", "-c", "exit 3")
    until(lambda: pods.cri.status(ended).state == api.CONTAINER_EXITED, "its end", 60)
    return ended


def _whole(cri: Cri, ended: str, expected: str) -> None:
    """Nothing is lost or damaged, pods run, and after their removal nothing is left."""
    assert cri.status(ended).exit_code == 3
    assert {one.state for one in cri.pods()} == {api.SANDBOX_NOTREADY}
    command = [sys.executable, "-m", "criagent", "image", "fsck"]
    fsck = subprocess.run(command, capture_output=True, text=True, check=False)
    assert fsck.returncode == 0, fsck.stdout + fsck.stderr
    assert content(cri, BUSYBOX) == expected
    pods = Pods(cri, Path(LOGS), "again")
    running = pods.running()
    assert pods.cri.exec(running, "echo", "alive").stdout == b"alive\n"
    for sandbox in cri.pods():
        cri.remove_pod(sandbox.id)
    for image in cri.images():
        cri.remove_image(image.id)
    run(sys.executable, "-m", "criagent", "image", "prune")
    assert left_in_root() == []


def end_everything() -> None:
    """As the end of the power does: the agent, monitors, containers, and their mounts."""
    if agent.running():
        agent.kill()
    monitors = [pid for pid, name, _ in _processes() if name == _MONITOR]
    ending = [pid for pid, _, parent in _processes() if parent in monitors] + monitors
    for pid in ending:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not {one[0] for one in _processes()} & {*ending}, "the end of all", 60)
    tops = (f"{RUN}/", f"{ROOT}/")
    found = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in reversed([target for target in found if target.startswith(tops)]):
        run("umount", target)


def _processes() -> list[tuple[int, str, int]]:
    """pid, name and parent of each process that has not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = entry.read_text().partition(" (")
            name, _, rest = rest.rpartition(") ")
            state, parent, *_ = rest.split()
            if state not in {"Z", "X"}:
                found.append((int(pid), name, int(parent)))
    return found
