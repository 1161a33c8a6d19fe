# SPDX-License-Identifier: Apache-2.0
"""Statistics: samples to serialized ContainerStats and PodSandboxStats.

Fields that the kernel does not report stay unset.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from criagent._proto import api_pb2
from criagent.cri.listing import framed
from criagent.model.container import Container, ContainerSpec
from criagent.model.sandbox import Sandbox, SandboxSpec
from criagent.runtime.stats.cgroup_usage import Pressure, PressurePair, Usage
from criagent.runtime.stats.container import StatsSample
from criagent.runtime.stats.pod import Interface, PodSample
from criagent.runtime.stats.writable_layers import LayerUsage

_DEFAULT_INTERFACE = "eth0"  # name of the pod's first interface on bridge and CNI networks
_LINUX = api_pb2.PodSandboxStats.DESCRIPTOR.fields_by_name["linux"].number
_CONTAINERS = api_pb2.LinuxPodSandboxStats.DESCRIPTOR.fields_by_name["containers"].number
_NO_USAGE = Usage()
_R = TypeVar("_R", Container, Sandbox)
_Value = api_pb2.UInt64Value


@dataclasses.dataclass(slots=True)
class _Kept:
    """Parts of one object's message that are the same in many answers, each as a whole message:
    protobuf merges messages whose bytes follow each other.
    """

    spec: ContainerSpec | SandboxSpec
    attributes: bytes
    layer: LayerUsage | None = None
    mountpoint: str = ""
    written: bytes = b""


class StatsEncoder:
    """Encodes samples, in one thread at a time.

    Attributes and sizes of writable layers are encoded once and kept until `forget`, which any
    thread may call. `listed` says whether an id still has a row.
    """

    def __init__(self, listed: Callable[[str], bool]) -> None:
        self._listed = listed
        self._kept: dict[str, _Kept] = {}

    def forget(self, object_id: str) -> None:
        """The container or sandbox was removed."""
        self._kept.pop(object_id, None)

    def kept(self) -> int:
        """The number of containers and sandboxes of which parts are kept."""
        return len(self._kept)

    def container(self, sample: StatsSample) -> bytes:
        """One ContainerStats."""
        kept = self._of(sample.container, _container_attributes)
        if sample.layer is None:
            written = _written(sample)
        else:
            if kept.layer is not sample.layer or kept.mountpoint != sample.mountpoint:
                kept.layer, kept.mountpoint = sample.layer, sample.mountpoint
                kept.written = _written(sample)
            written = kept.written
        message = api_pb2.ContainerStats()
        usage, now_ns = sample.usage or _NO_USAGE, sample.timestamp_ns
        _use(message, usage, sample.cpu_nano_cores, now_ns)
        if usage.swap is not None:
            message.swap.timestamp = now_ns
            message.swap.swap_usage_bytes.value = usage.swap
            if usage.swap_available is not None:
                message.swap.swap_available_bytes.value = usage.swap_available
        return kept.attributes + message.SerializeToString() + written

    def pod(self, sample: PodSample) -> bytes:
        """One PodSandboxStats."""
        linux = api_pb2.LinuxPodSandboxStats()
        _use(linux, sample.usage, sample.cpu_nano_cores, sample.timestamp_ns)
        if sample.processes is not None:
            linux.process.timestamp = sample.timestamp_ns
            linux.process.process_count.value = sample.processes
        if sample.interfaces:  # the kubelet crashes on a network without a default interface
            _connect(linux.network, sample)
        containers = [framed(self.container(one), _CONTAINERS) for one in sample.containers]
        encoded = b"".join((linux.SerializeToString(), *containers))
        attributes = self._of(sample.sandbox, _sandbox_attributes).attributes
        return attributes + framed(encoded, _LINUX)

    def _of(self, found: _R, encode: Callable[[_R], bytes]) -> _Kept:
        kept = self._kept.get(found.id)
        if kept is None or kept.spec is not found.spec:
            kept = self._kept[found.id] = _Kept(found.spec, encode(found))
            if not self._listed(found.id):  # it was removed and forgotten meanwhile
                self.forget(found.id)
        return kept


def _container_attributes(container: Container) -> bytes:
    metadata = container.spec.metadata
    message = api_pb2.ContainerStats(
        attributes=api_pb2.ContainerAttributes(
            id=container.id,
            metadata=api_pb2.ContainerMetadata(name=metadata.name, attempt=metadata.attempt),
            labels=container.spec.labels,
            annotations=container.spec.annotations,
        )
    )
    return message.SerializeToString()


def _sandbox_attributes(sandbox: Sandbox) -> bytes:
    metadata = sandbox.spec.metadata
    message = api_pb2.PodSandboxStats(
        attributes=api_pb2.PodSandboxAttributes(
            id=sandbox.id,
            metadata=api_pb2.PodSandboxMetadata(
                name=metadata.name,
                uid=metadata.uid,
                namespace=metadata.namespace,
                attempt=metadata.attempt,
            ),
            labels=sandbox.spec.labels,
            annotations=sandbox.spec.annotations,
        )
    )
    return message.SerializeToString()


def _written(sample: StatsSample) -> bytes:
    layer = api_pb2.FilesystemUsage(
        timestamp=sample.timestamp_ns,
        fs_id=api_pb2.FilesystemIdentifier(mountpoint=sample.mountpoint),
    )
    if sample.layer is not None:
        layer.timestamp = sample.layer.counted_at_ns
        layer.used_bytes.value = sample.layer.used_bytes
        layer.inodes_used.value = sample.layer.inodes
    return api_pb2.ContainerStats(writable_layer=layer).SerializeToString()


def _connect(network: api_pb2.NetworkUsage, sample: PodSample) -> None:
    network.timestamp = sample.timestamp_ns
    default = next(
        (one for one in sample.interfaces if one.name == _DEFAULT_INTERFACE),
        sample.interfaces[0],
    )
    network.default_interface.CopyFrom(_interface(default))
    network.interfaces.extend(_interface(one) for one in sample.interfaces if one is not default)


def _use(
    message: api_pb2.ContainerStats | api_pb2.LinuxPodSandboxStats,
    usage: Usage,
    nano_cores: int | None,
    now_ns: int,
) -> None:
    """CPU, memory and pressure, common to containers and pods."""
    cpu, memory = message.cpu, message.memory
    cpu.timestamp = memory.timestamp = now_ns
    if usage.cpu_ns is not None:
        cpu.usage_core_nano_seconds.value = usage.cpu_ns
    if nano_cores is not None:
        cpu.usage_nano_cores.value = nano_cores
    if usage.memory is not None:
        _use_memory(memory, usage)
    if usage.cpu_pressure is not None:
        cpu.psi.CopyFrom(_pressure(usage.cpu_pressure))
    if usage.memory_pressure is not None:
        memory.psi.CopyFrom(_pressure(usage.memory_pressure))
    if usage.io_pressure is not None:
        message.io.timestamp = now_ns
        message.io.psi.CopyFrom(_pressure(usage.io_pressure))


def _use_memory(memory: api_pb2.MemoryUsage, usage: Usage) -> None:
    _fill(memory, "working_set_bytes", usage.working_set)
    _fill(memory, "available_bytes", usage.available)
    _fill(memory, "usage_bytes", usage.memory)
    _fill(memory, "rss_bytes", usage.rss)
    _fill(memory, "page_faults", usage.page_faults)
    _fill(memory, "major_page_faults", usage.major_page_faults)


def _interface(interface: Interface) -> api_pb2.NetworkInterfaceUsage:
    return api_pb2.NetworkInterfaceUsage(
        name=interface.name,
        rx_bytes=_Value(value=interface.rx_bytes),
        rx_errors=_Value(value=interface.rx_errors),
        tx_bytes=_Value(value=interface.tx_bytes),
        tx_errors=_Value(value=interface.tx_errors),
    )


def _fill(message: Message, field: str, value: int | None) -> None:
    if value is not None:
        getattr(message, field).value = value


@functools.lru_cache(maxsize=2048)
def _pressure(pair: PressurePair) -> api_pb2.PsiStats:
    """The message, which callers copy. Most containers are idle, and then it stays the same."""
    return api_pb2.PsiStats(Full=_line(pair.full), Some=_line(pair.some))


def _line(pressure: Pressure) -> api_pb2.PsiData:
    return api_pb2.PsiData(
        Total=pressure.total_us * 1000,  # the CRI counts nanoseconds
        Avg10=pressure.avg10,
        Avg60=pressure.avg60,
        Avg300=pressure.avg300,
    )
