# SPDX-License-Identifier: Apache-2.0
"""Statistics: samples to ContainerStats and PodSandboxStats.

Fields that the kernel does not report stay unset.
"""

from __future__ import annotations

from google.protobuf.message import Message

from criagent._proto import api_pb2
from criagent.runtime.stats.cgroup_usage import Pressure, PressurePair, Usage
from criagent.runtime.stats.container import StatsSample
from criagent.runtime.stats.pod import Interface, PodSample

_DEFAULT_INTERFACE = "eth0"  # name of the pod's first interface on bridge and CNI networks
_Value = api_pb2.UInt64Value


def container_stats(sample: StatsSample) -> api_pb2.ContainerStats:
    """One container's message."""
    container = sample.container
    message = api_pb2.ContainerStats(
        attributes=api_pb2.ContainerAttributes(
            id=container.id,
            metadata=api_pb2.ContainerMetadata(
                name=container.spec.metadata.name, attempt=container.spec.metadata.attempt
            ),
            labels=container.spec.labels,
            annotations=container.spec.annotations,
        ),
        writable_layer=api_pb2.FilesystemUsage(
            timestamp=sample.timestamp_ns,
            fs_id=api_pb2.FilesystemIdentifier(mountpoint=sample.mountpoint),
        ),
    )
    if sample.layer is not None:
        message.writable_layer.timestamp = sample.layer.counted_at_ns
        message.writable_layer.used_bytes.value = sample.layer.used_bytes
        message.writable_layer.inodes_used.value = sample.layer.inodes
    usage = sample.usage or Usage()
    _use(message, usage, sample.cpu_nano_cores, sample.timestamp_ns)
    if usage.swap is not None:
        message.swap.timestamp = sample.timestamp_ns
        message.swap.swap_usage_bytes.value = usage.swap
        if usage.swap_available is not None:
            message.swap.swap_available_bytes.value = usage.swap_available
    return message


def pod_stats(sample: PodSample) -> api_pb2.PodSandboxStats:
    """One pod's message."""
    sandbox = sample.sandbox
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
    linux = message.linux
    _use(linux, sample.usage, sample.cpu_nano_cores, sample.timestamp_ns)
    if sample.processes is not None:
        linux.process.timestamp = sample.timestamp_ns
        linux.process.process_count.value = sample.processes
    if sample.interfaces:  # the kubelet crashes on a network without a default interface
        linux.network.timestamp = sample.timestamp_ns
        default = next(
            (one for one in sample.interfaces if one.name == _DEFAULT_INTERFACE),
            sample.interfaces[0],
        )
        linux.network.default_interface.CopyFrom(_interface(default))
        linux.network.interfaces.extend(
            _interface(one) for one in sample.interfaces if one is not default
        )
    linux.containers.extend(container_stats(one) for one in sample.containers)
    return message


def _use(
    message: api_pb2.ContainerStats | api_pb2.LinuxPodSandboxStats,
    usage: Usage,
    nano_cores: int | None,
    now_ns: int,
) -> None:
    """CPU, memory and pressure, common to containers and pods."""
    cpu, memory = message.cpu, message.memory
    cpu.timestamp = memory.timestamp = now_ns
    _fill(cpu, "usage_core_nano_seconds", usage.cpu_ns)
    _fill(cpu, "usage_nano_cores", nano_cores)
    _fill(memory, "working_set_bytes", usage.working_set)
    _fill(memory, "available_bytes", usage.available)
    _fill(memory, "usage_bytes", usage.memory)
    _fill(memory, "rss_bytes", usage.rss)
    _fill(memory, "page_faults", usage.page_faults)
    _fill(memory, "major_page_faults", usage.major_page_faults)
    if usage.cpu_pressure is not None:
        cpu.psi.CopyFrom(_pressure(usage.cpu_pressure))
    if usage.memory_pressure is not None:
        memory.psi.CopyFrom(_pressure(usage.memory_pressure))
    if usage.io_pressure is not None:
        message.io.timestamp = now_ns
        message.io.psi.CopyFrom(_pressure(usage.io_pressure))


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


def _pressure(pair: PressurePair) -> api_pb2.PsiStats:
    return api_pb2.PsiStats(Full=_line(pair.full), Some=_line(pair.some))


def _line(pressure: Pressure) -> api_pb2.PsiData:
    return api_pb2.PsiData(
        Total=pressure.total_us * 1000,  # the CRI counts nanoseconds
        Avg10=pressure.avg10,
        Avg60=pressure.avg60,
        Avg300=pressure.avg300,
    )
