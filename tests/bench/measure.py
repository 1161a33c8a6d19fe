"""Figures of the agent, serial and ten at once: `make bench` runs this in the test node.

Budgets are those of docs/architecture.md; times are medians in milliseconds.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from cri_client import BUSYBOX, Cri, api, container, pod

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
        row = {"name": name, "value": round(value, 3), "unit": unit, "budget": budget, "met": met}
        self.rows.append(row)
        sign = "≥" if least else "≤"
        print(f"{name:46}{value:10.2f} {unit:8}{sign} {budget:<8g}{'' if met else ' missed'}")
        sys.stdout.flush()


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def one_pod(cri: Cri, name: str) -> tuple[str, str, list[float]]:
    """A running pod with the times of its three calls."""
    config = pod(name, log_directory="/tmp/bench-logs")
    t0 = time.perf_counter()
    box = cri.run(config)
    t1 = time.perf_counter()
    row = cri.create(box, container("main", SLEEP), config)
    t2 = time.perf_counter()
    cri.start(row)
    t3 = time.perf_counter()
    return box, row, [(t1 - t0) * 1000, (t2 - t1) * 1000, (t3 - t2) * 1000]


def down(cri: Cri, box: str, row: str) -> list[float]:
    return [
        timed(lambda: cri.stop(row)),
        timed(lambda: cri.remove(row)),
        timed(lambda: cri.stop_pod(box)),
        timed(lambda: cri.remove_pod(box)),
    ]


def serial(cri: Cri, figures: Figures) -> None:
    ups, downs = [], []
    for number in range(ROUNDS):
        box, row, times = one_pod(cri, f"serial-{number}")
        if number == 0:
            execs = [timed(partial(cri.exec, row, "true")) for _ in range(ROUNDS)]
        ups.append(times)
        downs.append(down(cri, box, row))
    median = [statistics.median(column) for column in zip(*ups, strict=True)]
    figures.add("RunPodSandbox", median[0], "ms", 10)
    figures.add("  CreateContainer", median[1], "ms", 25)
    figures.add("  StartContainer", median[2], "ms", 10)
    figures.add("pod up", statistics.median(map(sum, ups)), "ms", 35)
    names = ("  StopContainer", "  RemoveContainer", "  StopPodSandbox", "  RemovePodSandbox")
    for name, column in zip(names, zip(*downs, strict=True), strict=True):
        figures.add(name, statistics.median(column), "ms", 40)
    figures.add("pod down", statistics.median(map(sum, downs)), "ms", 40)
    figures.add("ExecSync true", statistics.median(execs), "ms", 8)


def many(cri: Cri, figures: Figures) -> None:
    with ThreadPoolExecutor(10) as threads:
        start = time.perf_counter()
        pods = list(threads.map(lambda n: one_pod(cri, f"many-{n}"), range(PODS)))
        took = time.perf_counter() - start
        figures.add(f"{PODS} pods up, 10 at once", PODS / took, "pods/s", 45, least=True)
        listing = api.ListContainersRequest()
        cri.runtime.ListContainers(listing)
        lists = [timed(lambda: cri.runtime.ListContainers(listing)) for _ in range(100)]
        figures.add(f"ListContainers, {PODS}", statistics.median(lists), "ms", 0.9)
        stats = api.ListContainerStatsRequest()
        cri.runtime.ListContainerStats(stats)
        reads = [timed(lambda: cri.runtime.ListContainerStats(stats)) for _ in range(20)]
        figures.add(f"ListContainerStats, {PODS}", statistics.median(reads), "ms", 10)
        metrics = api.ListPodSandboxMetricsRequest()
        reads = [timed(lambda: cri.runtime.ListPodSandboxMetrics(metrics)) for _ in range(10)]
        figures.add(f"ListPodSandboxMetrics, {PODS}", statistics.median(reads), "ms", 40)
        figures.add("monitor memory a container (PSS)", monitor_pss_mb(), "MB", 2)
        figures.add(f"agent RSS with {PODS} pods", rss_mb(), "MB", 80)
        start = time.perf_counter()
        list(threads.map(lambda p: down(cri, p[0], p[1]), pods))
        took = time.perf_counter() - start
        figures.add(f"{PODS} pods down, 10 at once", PODS / took, "pods/s", 25, least=True)


def thousand(cri: Cri, figures: Figures) -> None:
    """List calls of 1000 containers while 50 more are created; only with BENCH_MANY=1."""
    config = pod("thousand", log_directory="/tmp/bench-logs")
    box = cri.run(config)
    with ThreadPoolExecutor(10) as threads:

        def create(number: int) -> None:
            cri.create(box, container(f"c{number}", SLEEP), config)

        list(threads.map(create, range(1000)))
        creates = [threads.submit(create, number) for number in range(1000, 1050)]
        listing = api.ListContainersRequest()
        times = []
        while not all(done.done() for done in creates):
            times.append(timed(lambda: cri.runtime.ListContainers(listing)))
        times.sort()
        figures.add("ListContainers, 1000, during creates (p50)", times[len(times) // 2], "ms", 20)
        figures.add(
            "ListContainers, 1000, during creates (p99)", times[len(times) * 99 // 100], "ms", 20
        )
        figures.add("agent RSS with 1000 containers", rss_mb(), "MB", 200)
        list(threads.map(lambda row: cri.start(row.id), cri.containers()))
        stats, metrics = api.ListContainerStatsRequest(), api.ListPodSandboxMetricsRequest()
        reads = [timed(lambda: cri.runtime.ListContainerStats(stats)) for _ in range(5)]
        figures.add("ListContainerStats, 1050 running", statistics.median(reads), "ms", 250)
        reads = [timed(lambda: cri.runtime.ListPodSandboxMetrics(metrics)) for _ in range(5)]
        figures.add("ListPodSandboxMetrics, 1050 running", statistics.median(reads), "ms", 750)
    cri.remove_pod(box)


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
    box, row, _ = one_pod(cri, "warm")
    down(cri, box, row)
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
    main()
