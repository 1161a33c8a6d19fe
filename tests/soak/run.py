# SPDX-License-Identifier: Apache-2.0
"""python3 -m tests.soak.run [--seconds N] [--pods N] [--containers N] [--seed S] [--workers N]
[--standing N]

Runs in a test node (`tests/node/up`). The first half of the time nothing is killed: memory,
descriptors and threads of the agent, mounts and cgroups of the node must be flat. In the second
half the agent, monitors, and the kubelets whose lives the workers lead are killed at random. Every
exit code must be the right one, pods that stand all the time must run at the end, and then the node
must be as it was. Exit status 1 when not.

With `--pods` or `--containers` the run ends when there were so many pods or short containers, and
`--seconds` is the time of the quiet part and the longest time of the other.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

from tests.soak.lives import LOGS, Node, Worker
from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, api, container, pod
from tests.support.node_state import agent_facts, differences, monitor_pid, settled_state

# Growth in the quiet half; lives that are in progress take some of it.
_GROWTH = {"rss_kb": 4096, "threads": 0, "fds": 8}
_GROWTH_FOR_EACH_WORKER = {"mounts": 12, "cgroups": 6}


class Killer:
    """Ends the agent, the monitor of a container, or a kubelet, at random moments."""

    def __init__(self, node: Node, chance: random.Random) -> None:
        self._node = node
        self._chance = chance

    def kill_until(self, end: float) -> None:
        while time.monotonic() < end and not self._node.ending.is_set():
            self._node.ending.wait(self._chance.uniform(0.2, 4))
            self._chance.choice((self._kill_agent, self._kill_monitor, self._kill_kubelet))()

    def _kill_agent(self) -> None:
        agent.kill()
        self._node.serving.clear()
        agent.start().close()
        self._node.serving.set()
        self._node.count("agents killed")

    def _kill_kubelet(self) -> None:
        self._chance.choice(self._node.workers).kill()

    def _kill_monitor(self) -> None:
        cri = Cri()
        running = [one.id for one in cri.containers() if one.state == api.CONTAINER_RUNNING]
        cri.close()
        if not running:
            return
        victim = self._chance.choice(running)
        self._node.hit.add(victim)
        try:
            process = os.pidfd_open(monitor_pid(victim))
        except (AssertionError, ProcessLookupError):  # it has just ended
            return
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(process)
        self._node.count("monitors killed")


def sample_until(node: Node, end: float) -> list[dict[str, int]]:
    """The agent's figures each second."""
    found = []
    while time.monotonic() < end and not node.ending.is_set():
        mounts = len(Path("/proc/self/mountinfo").read_text().splitlines())
        cgroups = sum(path.is_dir() for path in Path("/sys/fs/cgroup").rglob("*"))
        found.append({**agent_facts(), "mounts": mounts, "cgroups": cgroups})
        node.ending.wait(1)
    return found


def growth(samples: list[dict[str, int]]) -> dict[str, int]:
    """The least of the last quarter less that of the second, by figure.

    A life in progress has a thread of its own now and then; what leaks is there at every moment.
    """
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    return {key: min(one[key] for one in late) - min(one[key] for one in early) for key in late[0]}


def soak(node: Node, options: argparse.Namespace) -> dict[str, int]:
    """All workers for the whole time; returns the growth of the agent in the quiet half."""
    node.workers = [
        Worker(node, f"w{number}", random.Random(options.seed + number))
        for number in range(1, options.workers + 1)
    ]
    workers = [threading.Thread(target=worker.work) for worker in node.workers]
    begin = time.monotonic()
    for worker in workers:
        worker.start()
    try:
        samples = sample_until(node, begin + options.seconds / 2)
        killer = Killer(node, random.Random(options.seed))
        node.enough = {
            what: number
            for what, number in (("pods", options.pods), ("short containers", options.containers))
            if number
        }
        killer.kill_until(begin + options.seconds)
    finally:
        node.ending.set()
        node.serving.set()
        for worker in workers:
            worker.join()
    return growth(samples) if len(samples) > 8 else {}


def standing(cri: Cri, number: int) -> list[str]:
    """Pods that run all the time, as their containers."""
    made = []
    for name in (f"standing-{n}" for n in range(number)):
        config = pod(name, log_directory=str(LOGS / name))
        made.append(cri.create(cri.run(config), container("main", ["sleep", "1000000"]), config))
        cri.start(made[-1])
    return made


def lost(cri: Cri, containers: list[str], hit: set[str]) -> list[str]:
    """Those that do not run although nobody killed their monitor."""
    states = {one.id: one.state for one in cri.containers()}
    return [one for one in containers if states[one] != api.CONTAINER_RUNNING and one not in hit]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--pods", type=int, default=0)
    parser.add_argument("--containers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--standing", type=int, default=60)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    LOGS.mkdir(exist_ok=True)
    cri = Cri()
    cri.pull(BUSYBOX)
    before = settled_state(cri)
    stand = standing(cri, options.standing)
    cri.close()
    node = Node()
    grown = soak(node, options)
    for what, number in sorted(node.counts.items()):
        print(f"{what}: {number}")
    print(f"growth without kills: {grown}")
    failures, whole = list(node.failures), not node.failures
    limits = {key: n * options.workers for key, n in _GROWTH_FOR_EACH_WORKER.items()}
    if any(grown.get(key, 0) > limit for key, limit in {**_GROWTH, **limits}.items()):
        failures.append(f"the agent or the node grows: {grown}")
    missed = {what: n for what, n in node.enough.items() if node.counts[what] < n}
    if missed:
        failures.append(f"the time was over before there were {missed}")
    if whole:
        cri = Cri()
        if gone := lost(cri, stand, node.hit):
            failures.append(f"lost: {gone}")
        for sandbox in cri.pods():
            if sandbox.metadata.name.startswith("standing-"):
                cri.remove_pod(sandbox.id)
        if left := [one.metadata.name for one in cri.pods()]:
            failures.append(f"pods are left: {left}")
        if more := differences(before, settled_state(cri)):
            failures.append(f"left in the node:\n{more}")
        cri.close()
    for failure in failures:
        print(f"FAILED (seed {options.seed}): {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
