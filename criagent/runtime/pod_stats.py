"""Statistics of whole pods: the pod's cgroup, its interfaces, its containers. No fork."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

from criagent.aio import run_in
from criagent.kernel import cgroupfs
from criagent.kernel.namespaces import in_netns
from criagent.model import Sandbox, SandboxState
from criagent.runtime.cgroups import CgroupDriver, pod_cgroup
from criagent.runtime.pod_namespaces import PodNamespaces
from criagent.runtime.stats import ContainerStatsReader, StatsSample, cgroup_sample
from criagent.store.containers import ContainerStore


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """Counters of one interface since the pod's start."""

    name: str
    rx_bytes: int
    rx_errors: int
    tx_bytes: int
    tx_errors: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PodSample:
    """One pod. `cgroup` holds what its own cgroup tells, nothing for a pod without a parent."""

    box: Sandbox
    timestamp_ns: int
    cgroup: dict[str, int | None]
    processes: int | None
    interfaces: tuple[Interface, ...]
    containers: tuple[StatsSample, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PodStatsReader:
    """Reads pod samples in the fs executor."""

    containers: ContainerStore
    stats: ContainerStatsReader
    namespaces: PodNamespaces
    driver: CgroupDriver
    fs: Executor

    async def samples(self, boxes: Sequence[Sandbox], now_ns: int) -> list[PodSample]:
        """One sample a sandbox, in order."""
        rows = [row for box in boxes for row in self.containers.of_sandbox(box.id) if row.visible]
        of_container = {s.container.id: s for s in await self.stats.samples(rows)}
        kernel = await run_in(self.fs, lambda: [self._read(box) for box in boxes])
        return [
            PodSample(
                box=box,
                timestamp_ns=now_ns,
                cgroup=values,
                processes=processes,
                interfaces=interfaces,
                containers=tuple(
                    of_container[row.id]
                    for row in self.containers.of_sandbox(box.id)
                    if row.id in of_container
                ),
            )
            for box, (values, processes, interfaces) in zip(boxes, kernel, strict=True)
        ]

    def _read(
        self, box: Sandbox
    ) -> tuple[dict[str, int | None], int | None, tuple[Interface, ...]]:
        if box.state is not SandboxState.READY:
            return {}, None, ()
        values: dict[str, int | None] = {}
        processes = None
        if box.spec.cgroup_parent:
            cgroup = pod_cgroup(self.driver, box.spec.cgroup_parent)
            values = cgroup_sample(cgroup)
            pids = (cgroupfs.read(cgroup, "pids.current") or "").strip()
            processes = int(pids) if pids.isdigit() else None
        interfaces: tuple[Interface, ...] = ()
        if box.network_backend:
            with contextlib.suppress(OSError):  # the pod was stopped a moment ago
                interfaces = in_netns(self.namespaces.netns(box), _interfaces)
        return values, processes, interfaces


def _interfaces() -> tuple[Interface, ...]:
    """Interfaces of this thread's network namespace but lo (man 5 proc_net)."""
    text = Path("/proc/thread-self/net/dev").read_text()
    return tuple(one for one in parse_interfaces(text) if one.name != "lo")


def parse_interfaces(text: str) -> list[Interface]:
    """The table of /proc/net/dev."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        fields = [int(field) for field in rest.split()]
        found.append(
            Interface(
                name=name.strip(),
                rx_bytes=fields[0],
                rx_errors=fields[2],
                tx_bytes=fields[8],
                tx_errors=fields[10],
            )
        )
    return found
