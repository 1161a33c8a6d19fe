# SPDX-License-Identifier: Apache-2.0
"""Statistics of whole pods: the pod's cgroup, its interfaces, its containers. No fork."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from criagent.kernel import cgroupfs
from criagent.kernel.namespaces import in_each_netns
from criagent.model.sandbox import Sandbox, SandboxState
from criagent.runtime.node.cgroup_names import CgroupDriver, pod_cgroup
from criagent.runtime.pod.namespaces import PodNamespaces
from criagent.runtime.stats.cgroup_usage import CpuRates, Usage, read_usage, total
from criagent.runtime.stats.container import ContainerStatsReader, StatsSample
from criagent.runtime.stats.thread import StatsThread
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore

_TABLE = 1 << 12  # longer than the table of a pod with one interface

T = TypeVar("T")


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one interface since the pod's start."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


class PodSample(msgspec.Struct, frozen=True, kw_only=True):
    """One pod. `usage` is that of its own cgroup, or the sum of its containers without one.

    `interfaces` is empty for a pod on the host's network, and for one that is not ready.
    """

    sandbox: Sandbox
    timestamp_ns: int
    usage: Usage
    cpu_nano_cores: int | None
    processes: int | None
    interfaces: tuple[Interface, ...]
    containers: tuple[StatsSample, ...]


class PodStatsReader:
    """Reads pod samples off the loop."""

    def __init__(
        self,
        *,
        sandboxes: SandboxStore,
        containers: ContainerStore,
        stats: ContainerStatsReader,
        namespaces: PodNamespaces,
        rates: CpuRates,
        thread: StatsThread,
        driver: CgroupDriver,
    ) -> None:
        self._sandboxes = sandboxes
        self._containers = containers
        self._stats = stats
        self._namespaces = namespaces
        self._rates = rates
        self._thread = thread
        self._driver = driver

    async def read(
        self, sandboxes: Sequence[Sandbox], convert: Callable[[PodSample], T]
    ) -> list[T]:
        """One sample per sandbox, in order, converted in the reading thread."""
        containers = {
            sandbox.id: [one for one in self._containers.of_sandbox(sandbox.id) if one.visible]
            for sandbox in sandboxes
        }
        await self._stats.refresh([one for of in containers.values() for one in of])
        own = self.own_cgroups()

        def call() -> list[T]:
            interfaces = self.interfaces(sandboxes)
            return [
                convert(
                    self._sample(
                        sandbox,
                        tuple(map(self._stats.sample, containers[sandbox.id])),
                        own.get(sandbox.id),
                        interfaces.get(sandbox.id, ()),
                    )
                )
                for sandbox in sandboxes
            ]

        return await self._thread.run(call)

    def ready(self) -> list[Sandbox]:
        """The pods that run."""
        return [one for one in self._sandboxes.all() if one.state is SandboxState.READY]

    def own_cgroups(self) -> dict[str, str]:
        """The cgroup of each ready pod that has its own, by sandbox id.

        A pod without a parent, and pods that share theirs, have none.
        """
        ready = self.ready()
        users = Counter(sandbox.spec.cgroup_parent for sandbox in ready)
        return {
            sandbox.id: pod_cgroup(self._driver, sandbox.spec.cgroup_parent)
            for sandbox in ready
            if sandbox.spec.cgroup_parent and users[sandbox.spec.cgroup_parent] == 1
        }

    def interfaces(self, sandboxes: Sequence[Sandbox]) -> dict[str, tuple[Interface, ...]]:
        """The interfaces of the ready pods that have their own network; synchronous."""
        connected = [
            sandbox
            for sandbox in sandboxes
            if sandbox.state is SandboxState.READY and sandbox.network_backend
        ]
        pins = [self._namespaces.netns(sandbox) for sandbox in connected]
        found = in_each_netns(pins, _interfaces)
        return {sandbox.id: one or () for sandbox, one in zip(connected, found, strict=True)}

    def _sample(
        self,
        sandbox: Sandbox,
        containers: tuple[StatsSample, ...],
        cgroup: str | None,
        interfaces: tuple[Interface, ...],
    ) -> PodSample:
        running = [sample for sample in containers if sample.usage is not None]
        rate: int | None = None
        if cgroup is not None:
            usage = read_usage(cgroup)
            if usage.cpu_ns is not None:
                rate = self._rates.rate(sandbox.id, time.monotonic_ns(), usage.cpu_ns)
            found = cgroupfs.processes(cgroup)
            processes = None if found is None else len(found)
        else:
            usage = total(sample.usage for sample in running if sample.usage is not None)
            rates = [one.cpu_nano_cores for one in running if one.cpu_nano_cores is not None]
            rate = sum(rates) if rates else None
            counts = [cgroupfs.processes(sample.container.cgroup) for sample in running]
            processes = sum(len(found) for found in counts if found is not None)
        return PodSample(
            sandbox=sandbox,
            timestamp_ns=time.time_ns(),
            usage=usage,
            cpu_nano_cores=rate,
            processes=processes,
            interfaces=interfaces,
            containers=containers,
        )


def _interfaces() -> tuple[Interface, ...]:
    """Interfaces of this thread's network namespace except lo (man 5 proc_net)."""
    fd = os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, _TABLE)
        while more := os.read(fd, _TABLE):
            text += more
    finally:
        os.close(fd)
    return tuple(parse_interfaces(text.decode()))


def parse_interfaces(text: str) -> list[Interface]:
    """The table of /proc/net/dev but for lo."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        if name.strip() == "lo":
            continue
        fields = [int(field) for field in rest.split()]
        found.append(
            Interface(
                name=name.strip(),
                rx_bytes=fields[0],
                rx_packets=fields[1],
                rx_errors=fields[2],
                rx_dropped=fields[3],
                tx_bytes=fields[8],
                tx_packets=fields[9],
                tx_errors=fields[10],
                tx_dropped=fields[11],
            )
        )
    return found
