# SPDX-License-Identifier: Apache-2.0
# vm: limit=6000 programs=containerd,kubelet seconds=2700
"""Ten idle minutes of a kubelet with twenty pods: what it logs, and what its runtime costs.

First on criagent, then the same pods on containerd by the same kubelet in the same machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest

from tests.support import containerd_node
from tests.support.cri_client import Cri, api
from tests.support.kubelet_node import LIMIT_S, MANIFESTS, Kubelet, ids, restarts
from tests.support.units import main_pid, systemctl
from tests.support.waiting import until

PODS = 20
SETTLE_S = 90
WINDOW_S = 600
SYSTEM = Path("/sys/fs/cgroup/system.slice")
# Errors of the kubelet that have to do with its runtime: its clients of the CRI, what it makes of
# their answers, and everything that speaks of pods' parts.
_RUNTIME = re.compile(
    r"runtime|\bcri\b|pleg|remote_|rpc error|sandbox|container|image|pod_workers|cgroup|stats",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one window: per cent of a core, and megabytes that are a process's own share (PSS)."""

    daemon: float
    helpers: float
    kubelet: float
    daemon_mb: float
    helpers_mb: float
    helper_number: int

    @property
    def total(self) -> float:
        return self.daemon + self.helpers


@pytest.fixture(autouse=True)
def nothing_leaks() -> None:
    """Replaced: two runtimes take turns here."""


@pytest.fixture(scope="module")
def costs() -> dict[str, Cost]:
    """What was measured so far."""
    return {}


def _used_s(pids: list[int]) -> float:
    """Seconds that these processes, all of their threads, have run."""
    threads = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in threads) / 1e9


def _unit_s(unit: str) -> float:
    """Seconds that everything in the unit's cgroup has run, what has ended included."""
    line = (SYSTEM / f"{unit}.service/cpu.stat").read_text().splitlines()[0]
    return int(line.removeprefix("usage_usec ")) / 1e6


def _share_mb(pids: list[int]) -> float:
    found = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found += int(re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE)[0])
    return found / 1024


def _window(
    runtime: str,
    units: tuple[str, ...],
    processes: Callable[[], tuple[list[int], list[int]]],
    kubelet: Kubelet,
) -> Cost:
    """Let the kubelet be for WINDOW_S and measure. The runtime must not give it a cause to log."""
    for number in range(PODS):
        kubelet.add(
            f"idle-{number}", {"containers": [{"name": "idle", "command": ["sleep", "1000000"]}]}
        )
    for number in range(PODS):
        kubelet.until_ready(f"idle-{number}")
    Event().wait(SETTLE_S)
    before_pods = {pod["metadata"]["name"]: ids(pod) for pod in kubelet.pods()}
    before_log = len(kubelet.journal().splitlines())
    daemon, helpers = processes()
    helper_s, unit_s = _used_s(helpers), [_unit_s(unit) for unit in (*units, "kubelet")]
    Event().wait(WINDOW_S)
    used = [
        (_unit_s(unit) - first) * 100 / WINDOW_S
        for unit, first in zip((*units, "kubelet"), unit_s, strict=True)
    ]
    helper_cpu = (_used_s(helpers) - helper_s) * 100 / WINDOW_S
    log = kubelet.journal().splitlines()[before_log:]
    assert processes() == (daemon, helpers)
    pods = kubelet.pods()
    assert {pod["metadata"]["name"]: ids(pod) for pod in pods} == before_pods
    assert len(pods) == PODS
    assert {count for pod in pods for count in restarts(pod).values()} == {0}
    errors = [line for line in log if re.match(r"E\d{4} ", line)]
    found = [line for line in errors if _RUNTIME.search(line)]
    print(f"{runtime}: {len(log)} lines of the kubelet in {WINDOW_S} s, {len(errors)} errors,")
    print(f"of which {len(found)} about the runtime", *errors[:20], sep="\n")
    cost = Cost(
        daemon=sum(used[:-1]) - helper_cpu,
        helpers=helper_cpu,
        kubelet=used[-1],
        daemon_mb=_share_mb(daemon),
        helpers_mb=_share_mb(helpers),
        helper_number=len(helpers),
    )
    print(
        f"figure: {runtime} idle with {PODS} pods: {cost.total:.2f} % of a core (daemon"
        f" {cost.daemon:.2f}, {cost.helper_number} monitors or shims {cost.helpers:.2f}; kubelet"
        f" {cost.kubelet:.2f}); memory {cost.daemon_mb + cost.helpers_mb:.0f} MB (daemon"
        f" {cost.daemon_mb:.0f}, the others {cost.helpers_mb:.0f})"
    )
    if runtime == "criagent":
        assert found == []
    return cost


def _end_pods(cri: Cri) -> None:
    for manifest in MANIFESTS.iterdir():
        manifest.unlink()
    until(lambda: not cri.pods(), "the removal of all sandboxes", 2 * LIMIT_S)


def _criagent() -> tuple[list[int], list[int]]:
    monitors = SYSTEM / "criagent-monitors.service/monitors/cgroup.procs"
    return [main_pid("criagent")], sorted(map(int, monitors.read_text().split()))


@pytest.mark.timeout(3000)
def test_ten_idle_minutes_on_criagent(costs: dict[str, Cost]) -> None:
    kubelet = Kubelet()
    kubelet.start()
    units = ("criagent", "criagent-monitors")
    costs["criagent"] = _window("criagent", units, _criagent, kubelet)
    assert costs["criagent"].helper_number == PODS
    cri = Cri()
    _end_pods(cri)
    cri.close()
    kubelet.stop()


@pytest.mark.timeout(3000)
def test_ten_idle_minutes_on_containerd_cost_more(costs: dict[str, Cost]) -> None:
    systemctl("stop", "criagent")
    containerd_node.start()
    kubelet = Kubelet()
    try:
        kubelet.start(containerRuntimeEndpoint=containerd_node.ENDPOINT)
        cri = Cri(containerd_node.ENDPOINT)
        other = _window("containerd", ("containerd",), containerd_node.processes, kubelet)
        pods = [sandbox.state for sandbox in cri.pods()]
        assert pods == [api.SANDBOX_READY] * PODS
        _end_pods(cri)
        cri.close()
        kubelet.stop()
    finally:
        containerd_node.stop()
        systemctl("start", "criagent")
    own = costs["criagent"]
    print(
        f"figure: containerd to criagent: CPU {other.total / own.total:.1f} to 1, memory"
        f" {(other.daemon_mb + other.helpers_mb) / (own.daemon_mb + own.helpers_mb):.1f} to 1"
    )
    assert own.total < other.total
