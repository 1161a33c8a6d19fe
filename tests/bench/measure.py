# SPDX-License-Identifier: Apache-2.0
"""Figures of the agent, serial and ten at once: `make bench` runs this in the test node.

Budgets are those of docs/architecture.md; times are medians in milliseconds.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.support.cri_client import BUSYBOX, Cri, api, container, pod

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "30"))
PODS = 60
SLEEP = ["sleep", "100000"]


class Figures:
    """Named figures with their budgets."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(
        self, name: str, value: float, unit: str, budget: float, *, least: bool = False
    ) -> None:
        met = value >= budget if least else value <= budget
        row = {"name": name.strip(), "value": round(value, 3), "unit": unit, "budget": budget}
        self.rows.append(row | {"met": met, "least": least})
        sign = "≥" if least else "≤"
        print(f"{name:46}{value:10.2f} {unit:8}{sign} {budget:<8g}{'' if met else ' missed'}")
        sys.stdout.flush()


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def cpu_ms() -> float:
    """CPU time that the node has used but for this process: the agent, monitors, OCI runtimes."""
    text = Path("/sys/fs/cgroup/cpu.stat").read_text()
    used = next(int(x.split()[1]) for x in text.splitlines() if x.startswith("usage_usec"))
    own = os.times()
    return used / 1000 - (own.user + own.system) * 1000


def one_pod(cri: Cri, name: str) -> tuple[str, str, list[float]]:
    """A running pod with the times of its three calls."""
    config = pod(name, log_directory="/tmp/bench-logs")
    t0 = time.perf_counter()
    sandbox = cri.run(config)
    t1 = time.perf_counter()
    row = cri.create(sandbox, container("main", SLEEP), config)
    t2 = time.perf_counter()
    cri.start(row)
    t3 = time.perf_counter()
    return sandbox, row, [(t1 - t0) * 1000, (t2 - t1) * 1000, (t3 - t2) * 1000]


def down(cri: Cri, sandbox: str, row: str) -> list[float]:
    return [
        timed(lambda: cri.stop(row)),
        timed(lambda: cri.remove(row)),
        timed(lambda: cri.stop_pod(sandbox)),
        timed(lambda: cri.remove_pod(sandbox)),
    ]


def serial(cri: Cri, figures: Figures) -> None:
    ups, downs = [], []
    for number in range(ROUNDS):
        sandbox, row, times = one_pod(cri, f"serial-{number}")
        if number == 0:
            execs = [timed(partial(cri.exec, row, "true")) for _ in range(ROUNDS)]
        ups.append(times)
        downs.append(down(cri, sandbox, row))
    median = [statistics.median(column) for column in zip(*ups, strict=True)]
    figures.add("RunPodSandbox", median[0], "ms", 10)
    figures.add("  CreateContainer", median[1], "ms", 25)
    figures.add("  StartContainer", median[2], "ms", 10)
    figures.add("pod up", statistics.median(map(sum, ups)), "ms", 35)
    names = ("  StopContainer", "  RemoveContainer", "  StopPodSandbox", "  RemovePodSandbox")
    for name, column in zip(names, zip(*downs, strict=True), strict=True):
        figures.add(name, statistics.median(column), "ms", 40)
    figures.add("pod down", statistics.median(map(sum, downs)), "ms", 40)
    figures.add("ExecSync true", statistics.median(execs), "ms", 8)  # type: ignore[possibly-undefined]


def many(cri: Cri, figures: Figures) -> None:
    with ThreadPoolExecutor(10) as threads:
        start, used = time.perf_counter(), cpu_ms()
        pods = list(threads.map(lambda n: one_pod(cri, f"many-{n}"), range(PODS)))
        took, used = time.perf_counter() - start, cpu_ms() - used
        figures.add(f"{PODS} pods up, 10 at once", PODS / took, "pods/s", 45, least=True)
        figures.add("CPU time of one pod up", used / PODS, "ms", 30)
        listing = api.ListContainersRequest()
        cri.runtime.ListContainers(listing)
        lists = [timed(lambda: cri.runtime.ListContainers(listing)) for _ in range(100)]
        figures.add(f"ListContainers, {PODS}", statistics.median(lists), "ms", 0.9)
        small_calls(cri, figures, *pods[0][:2])
        stats = api.ListContainerStatsRequest()
        cri.runtime.ListContainerStats(stats)
        reads = [timed(lambda: cri.runtime.ListContainerStats(stats)) for _ in range(20)]
        figures.add(f"ListContainerStats, {PODS}", statistics.median(reads), "ms", 10)
        metrics = api.ListPodSandboxMetricsRequest()
        reads = [timed(lambda: cri.runtime.ListPodSandboxMetrics(metrics)) for _ in range(10)]
        figures.add(f"ListPodSandboxMetrics, {PODS}", statistics.median(reads), "ms", 40)
        figures.add("monitor memory a container (PSS)", monitor_pss_mb(), "MB", 2)
        figures.add(f"agent RSS with {PODS} pods", rss_mb(), "MB", 80)
        start, used = time.perf_counter(), cpu_ms()
        list(threads.map(lambda p: down(cri, p[0], p[1]), pods))
        took, used = time.perf_counter() - start, cpu_ms() - used
        figures.add(f"{PODS} pods down, 10 at once", PODS / took, "pods/s", 25, least=True)
        figures.add("CPU time of one pod down", used / PODS, "ms", 20)


def small_calls(cri: Cri, figures: Figures, sandbox: str, row: str) -> None:
    """Calls that await nothing, and one that does nothing: the floor of gRPC in Python."""
    calls: dict[str, Callable[[], object]] = {
        "Version": partial(cri.runtime.Version, api.VersionRequest()),
        "ListPodSandbox": partial(cri.runtime.ListPodSandbox, api.ListPodSandboxRequest()),
        "ContainerStatus": partial(cri.status, row),
        "PodSandboxStatus": partial(cri.pod_status, sandbox),
    }
    for name, call in calls.items():
        times = [timed(call) for _ in range(100)]
        figures.add(f"{name}, {PODS}", statistics.median(times), "ms", 0.9)


@contextmanager
def lists(name: str) -> Iterator[list[float]]:
    """Sorted times of a list call, made again and again by another process; there at the end."""
    times: list[float] = []
    pipe = subprocess.PIPE
    command = [sys.executable, __file__, name]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield times
        times += json.loads(process.communicate("")[0])


def list_again_and_again(name: str) -> None:
    """What that process does, until its stdin ends."""
    cri = Cri()
    call = getattr(cri.runtime, name)
    request = getattr(api, f"{name}Request")()
    call(request)
    print("ready", flush=True)
    times = []
    while not select.select([sys.stdin], [], [], 0)[0]:
        times.append(timed(lambda: call(request)))
    print(json.dumps(sorted(times)))


def thousand(cri: Cri, figures: Figures) -> None:
    """List calls of 1000 containers while 100 more pods are made; only with BENCH_MANY=1."""
    config = pod("thousand", log_directory="/tmp/bench-logs")
    sandbox = cri.run(config)
    with ThreadPoolExecutor(10) as threads:

        def create(number: int) -> None:
            cri.create(sandbox, container(f"c{number}", SLEEP), config)

        list(threads.map(create, range(1000)))
        more: list[str] = []
        for name in ("ListContainers", "ListContainerStats"):
            start = len(more)
            with lists(name) as times:
                names = [f"more-{number}" for number in range(start, start + 100)]
                more += [found[0] for found in threads.map(partial(one_pod, cri), names)]
            budget = 20 if name == "ListContainers" else 1000
            for percent in (50, 99):
                value = times[len(times) * percent // 100]
                figures.add(f"{name}, 1000, pods made (p{percent})", value, "ms", budget)
        figures.add("agent RSS with 1200 containers", rss_mb(), "MB", 200)
        list(threads.map(cri.remove_pod, more))
    cri.remove_pod(sandbox)


def monitor_pss_mb() -> float:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "comm").read_text().strip() == "conmon":
            text = (entry / "smaps_rollup").read_text()
            found.append(next(int(x.split()[1]) for x in text.splitlines() if x[:4] == "Pss:"))
    return statistics.median(found) / 1000 if found else 0.0


def rss_mb() -> float:
    pid = Path("/run/criagent.pid").read_text()
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(x.split()[1]) for x in text.splitlines() if x.startswith("VmRSS")) / 1000


def main() -> None:
    cri, figures = Cri(), Figures()
    cri.pull(BUSYBOX)
    sandbox, row, _ = one_pod(cri, "warm")
    down(cri, sandbox, row)
    serial(cri, figures)
    many(cri, figures)
    if os.environ.get("BENCH_MANY"):
        thousand(cri, figures)
    cri.remove_image(BUSYBOX)
    target = Path("/src/build/bench.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(figures.rows, indent=2, ensure_ascii=False) + "\n")
    print("as JSON: build/bench.json")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        list_again_and_again(sys.argv[1])
    else:
        main()
