# SPDX-License-Identifier: Apache-2.0
"""No memory at every verb: the reason, or an agent that ends and finds everything when it is back.

First the limit of the agent's writable memory (RLIMIT_DATA, setrlimit(2)) is what it has and a few
pages, so that any allocation may fail, in Python, in a library and in a system call. Then the limit
is one of a cgroup, where the kernel kills.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fire.verbs import OTHER, VERBS, Call, Code, Outcome, outcome, trapping
from tests.support import agent
from tests.support.cri_client import Cri, api
from tests.support.node_state import agent_pid, differences, settled_state
from tests.support.pods import Pods
from tests.support.waiting import content

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

_MORE = (0, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20)  # bytes
_MORE_OF_CGROUP = (0, 1 << 20, 4 << 20, 16 << 20)


def _data_bytes(pid: int) -> int:
    """What RLIMIT_DATA of that process is compared with."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no VmData of {pid}")


@contextlib.contextmanager
def memory_left(size: int) -> Iterator[None]:
    """The agent can get so many more bytes of memory."""
    pid = agent_pid()
    before = resource.prlimit(pid, resource.RLIMIT_DATA)
    resource.prlimit(pid, resource.RLIMIT_DATA, (_data_bytes(pid) + size, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_DATA, before)


def _restarted(pods: Pods, found: Outcome, start: Callable[[], Cri]) -> bool:
    """Whether the agent has ended, as the end of its socket says; then another one serves."""
    if found.code is Code.UNAVAILABLE:
        assert agent.died(), found
    if agent.running():
        return False
    pods.cri.close()
    pods.cri = start()
    return True


def _works(pods: Pods, call: Call, found: Outcome, start: Callable[[], Cri]) -> None:
    """As for a kubelet the call is made again if it failed; then its effect is there."""
    made = found
    while made.code is not Code.OK:
        made = outcome(call.make)
        assert made.code is Code.OK or _restarted(pods, made, start), f"{found}, then {made}"
    assert call.holds(), found


def _fsck() -> str:
    command = [sys.executable, "-m", "criagent", "image", "fsck"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@dataclass
class Counts:
    """How often the calls of a verb failed, and the agent ended."""

    calls: int = 0
    failed: int = 0
    ended: int = 0


def _each(
    verb: str,
    pods: Pods,
    shortages: Sequence[contextlib.AbstractContextManager[None]],
    start: Callable[[], Cri],
) -> Counts:
    """The verb in each shortage and after it; a container beside it and the images stay whole."""
    before = settled_state(pods.cri)
    bystander = trapping(pods)
    standing = {one.id for one in pods.cri.pods()}
    counts = Counts(calls=len(shortages))
    for shortage in shortages:
        call = VERBS[verb](pods)
        with shortage:
            found = outcome(call.make)
        if _restarted(pods, found, start):
            counts.ended += 1
        elif found.code is not Code.OK:
            counts.failed += 1
            assert found.code is Code.RESOURCE_EXHAUSTED, found
            assert "memory" in found.text, found
        _works(pods, call, found, start)
        for sandbox in {one.id for one in pods.cri.pods()} - standing:
            pods.cri.remove_pod(sandbox)
    pods.cri.stop(bystander, 20)
    status = pods.cri.status(bystander)
    assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 7)
    assert _fsck() == ""
    for sandbox in standing:
        pods.cri.remove_pod(sandbox)
    if verb == "PullImage":
        pods.cri.remove_image(OTHER)
    assert differences(before, settled_state(pods.cri)) == ""
    return counts


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_without_memory_names_the_reason_and_works_afterwards(verb: str, pods: Pods) -> None:
    """A library may also end the agent, or the agent itself where no caller gets the error."""
    counts = _each(verb, pods, [memory_left(size) for size in _MORE], agent.start)
    print(f"{verb}: {counts}")


class MemoryCgroup:
    """A cgroup of the agent and what it starts: of cgroup v1, or of v2 with a memory controller."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._group = top / f"criagent-fire-{os.urandom(4).hex()}"  # other nodes may have theirs
        self._group.mkdir()
        first = (self._group / "memory.limit_in_bytes").exists()
        self._limit = self._group / ("memory.limit_in_bytes" if first else "memory.max")
        self._usage = self._group / ("memory.usage_in_bytes" if first else "memory.current")
        self._none = "-1" if first else "max"

    def start_agent(self) -> Cri:
        """An agent that is in it from its first page on."""
        (self._group / "cgroup.procs").write_text(str(os.getpid()))
        try:
            return agent.start()
        finally:
            (self.top / "cgroup.procs").write_text(str(os.getpid()))

    @contextlib.contextmanager
    def left(self, size: int) -> Iterator[None]:
        """There are so many more bytes than the kernel cannot take back."""
        least = 16 << 20
        while True:
            try:
                self._limit.write_text(str(least + size))
                break
            except OSError:  # EBUSY: more than that is in use, and cannot be reclaimed
                least += 1 << 20
        try:
            yield
        finally:
            self._limit.write_text(self._none)

    def remove(self) -> None:
        for pid in (self._group / "cgroup.procs").read_text().split():
            (self.top / "cgroup.procs").write_text(pid)
        self._group.rmdir()


@pytest.fixture
def group(pods: Pods) -> Iterator[MemoryCgroup]:
    """The agent runs in it; afterwards it is the node's own again."""
    top = Path("/sys/fs/cgroup")
    mounted = "memory" not in (top / "cgroup.controllers").read_text().split()
    if mounted:
        top = Path("/mnt/memory")
        top.mkdir()
        command = ["mount", "-t", "cgroup", "-o", "memory", "memory", str(top)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            top.rmdir()
            pytest.skip("this kernel has no memory controller for this node")
    agent.stop()
    made = MemoryCgroup(top)
    pods.cri = made.start_agent()
    try:
        yield made
    finally:
        pods.cri.close()
        if agent.running():
            agent.stop()
        made.remove()
        if mounted:
            subprocess.run(["umount", top], check=True)
            top.rmdir()
        pods.cri = agent.start()


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_whose_agent_is_killed_for_memory_works_afterwards(
    verb: str, pods: Pods, group: MemoryCgroup
) -> None:
    counts = _each(verb, pods, [group.left(size) for size in _MORE_OF_CGROUP], group.start_agent)
    print(f"{verb}: {counts}")


def _workers() -> list[int]:
    """Pids of the agent's unpack workers."""
    return [
        int(entry.parent.name)
        for entry in Path("/proc").glob("[0-9]*/cmdline")
        if b"criagent.image.unpack.worker" in content(entry)
    ]


def test_a_pull_whose_worker_is_killed_for_memory_says_so(pods: Pods) -> None:
    """As the kernel does it, with SIGKILL; each worker that begins until the pull has failed."""
    call = VERBS["PullImage"](pods)
    with ThreadPoolExecutor(1) as thread:
        pull = thread.submit(outcome, call.make)
        while not pull.done():
            for pid in _workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    found = pull.result()
    assert found.code is Code.RESOURCE_EXHAUSTED, found
    assert "the unpack worker was killed" in found.text
    _works(pods, call, found, agent.start)
    assert _fsck() == ""
    pods.cri.remove_image(OTHER)
