# SPDX-License-Identifier: Apache-2.0
"""Metrics of pods and their running containers: one pod at a time, without a fork."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from criagent.kernel import cgroupfs
from criagent.model.container import Container, ContainerState
from criagent.model.sandbox import Sandbox
from criagent.runtime.stats import metric_catalogue as names
from criagent.runtime.stats.metric_values import (
    Devices,
    Value,
    cgroup_values,
    filesystem_values,
    process_values,
)
from criagent.runtime.stats.pod import Interface, PodStatsReader
from criagent.runtime.stats.thread import StatsThread
from criagent.runtime.stats.writable_layers import WritableLayers
from criagent.store.containers import ContainerStore

T = TypeVar("T")

_PODS = 20  # read in one go: takes some tens of milliseconds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PodMetrics:
    """One pod. Its values are those of its cgroup, if it has one, and of its interfaces."""

    sandbox: Sandbox
    values: tuple[Value, ...]
    containers: tuple[tuple[Container, tuple[Value, ...]], ...]


class PodMetricsReader:
    """Reads metrics off the loop."""

    def __init__(
        self,
        *,
        containers: ContainerStore,
        pods: PodStatsReader,
        layers: WritableLayers,
        thread: StatsThread,
    ) -> None:
        self._containers = containers
        self._pods = pods
        self._layers = layers
        self._thread = thread

    def ready(self) -> list[list[Sandbox]]:
        """The pods that have metrics, in the batches in which they are read."""
        sandboxes = self._pods.ready()
        return [sandboxes[at : at + _PODS] for at in range(0, len(sandboxes), _PODS)]

    async def read(
        self, sandboxes: Sequence[Sandbox], convert: Callable[[PodMetrics], T]
    ) -> list[T]:
        """The metrics of `sandboxes`, converted in the reading thread."""
        containers = {
            sandbox.id: [
                sample
                for sample in self._containers.of_sandbox(sandbox.id)
                if sample.state is ContainerState.RUNNING and sample.cgroup
            ]
            for sandbox in sandboxes
        }
        await self._layers.refresh([sample for of in containers.values() for sample in of])
        own = self._pods.own_cgroups()

        def call() -> list[T]:
            devices = Devices()
            rooms: dict[str, tuple[str, tuple[Value, ...]]] = {}  # device and space by directory
            interfaces = self._pods.interfaces(sandboxes)

            def container(sample: Container) -> tuple[Value, ...]:
                place = self._layers.mountpoint(sample.id)
                if place not in rooms:
                    device = devices.holding(Path(place))
                    rooms[place] = device, filesystem_values(Path(place), device)
                device, room = rooms[place]
                values = (*_container(sample, devices), *room)
                layer = self._layers.usage(sample.id)
                if layer is None:
                    return values
                written = Value(names.FS_USAGE, layer.used_bytes, (device,), layer.counted_at_ns)
                return (*values, written)

            return [
                convert(
                    PodMetrics(
                        sandbox=sandbox,
                        values=tuple(
                            _pod(
                                sandbox,
                                own.get(sandbox.id),
                                interfaces.get(sandbox.id, ()),
                                devices,
                            )
                        ),
                        containers=tuple(
                            (sample, container(sample)) for sample in containers[sandbox.id]
                        ),
                    )
                )
                for sandbox in sandboxes
            ]

        return await self._thread.run(call)


def _pod(
    sandbox: Sandbox, cgroup: str | None, interfaces: Iterable[Interface], devices: Devices
) -> Iterator[Value]:
    for one in interfaces:
        for metric, number in (
            (names.RX_BYTES, one.rx_bytes),
            (names.RX_PACKETS, one.rx_packets),
            (names.RX_DROPPED, one.rx_dropped),
            (names.RX_ERRORS, one.rx_errors),
            (names.TX_BYTES, one.tx_bytes),
            (names.TX_PACKETS, one.tx_packets),
            (names.TX_DROPPED, one.tx_dropped),
            (names.TX_ERRORS, one.tx_errors),
        ):
            yield Value(metric, number, (one.name,))
    if cgroup is None:
        return
    with cgroupfs.Reader(cgroup) as files:
        yield from cgroup_values(files, devices)
    found = cgroupfs.processes(cgroup)
    if found is not None:
        yield Value(names.PROCESSES, len(found))
    yield from _times(sandbox.ready_at_ns)


def _container(container: Container, devices: Devices) -> Iterator[Value]:
    with cgroupfs.Reader(container.cgroup) as files:
        yield from cgroup_values(files, devices, container.resources.cpu_shares)
    yield from process_values(container.cgroup, container.init.pid if container.init else 0)
    yield from _times(container.started_at_ns)


def _times(started_ns: int) -> Iterator[Value]:
    yield Value(names.LAST_SEEN, int(time.time()))
    yield Value(names.START_TIME, started_ns / 10**9)
