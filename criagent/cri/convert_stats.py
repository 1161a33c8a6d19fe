"""Statistics: samples to ContainerStats. What the kernel does not tell stays unset."""

from __future__ import annotations

from google.protobuf.message import Message

from criagent._proto import api_pb2
from criagent.runtime.pod_stats import Interface, PodSample
from criagent.runtime.stats import PressurePair, StatsSample

_DEFAULT_INTERFACE = "eth0"  # what bridge and CNI networks call the pod's first one


def container_stats(sample: StatsSample) -> api_pb2.ContainerStats:
    """One container's message."""
    row = sample.container
    message = api_pb2.ContainerStats(
        attributes=api_pb2.ContainerAttributes(
            id=row.id,
            metadata=api_pb2.ContainerMetadata(
                name=row.spec.metadata.name, attempt=row.spec.metadata.attempt
            ),
            labels=row.spec.labels,
            annotations=row.spec.annotations,
        ),
        writable_layer=api_pb2.FilesystemUsage(
            timestamp=sample.timestamp_ns,
            fs_id=api_pb2.FilesystemIdentifier(mountpoint=sample.mountpoint),
            used_bytes=api_pb2.UInt64Value(value=sample.writable_bytes),
            inodes_used=api_pb2.UInt64Value(value=sample.writable_inodes),
        ),
    )
    message.cpu.timestamp = sample.timestamp_ns
    message.memory.timestamp = sample.timestamp_ns
    _fill(message.cpu, "usage_core_nano_seconds", sample.cpu_usage_ns)
    _fill(message.cpu, "usage_nano_cores", sample.cpu_nano_cores)
    _fill(message.memory, "working_set_bytes", sample.memory_working_set)
    _fill(message.memory, "available_bytes", sample.memory_available)
    _fill(message.memory, "usage_bytes", sample.memory_usage)
    _fill(message.memory, "rss_bytes", sample.memory_rss)
    _fill(message.memory, "page_faults", sample.page_faults)
    _fill(message.memory, "major_page_faults", sample.major_page_faults)
    if sample.swap_usage is not None:
        message.swap.timestamp = sample.timestamp_ns
        _fill(message.swap, "swap_usage_bytes", sample.swap_usage)
        _fill(message.swap, "swap_available_bytes", sample.swap_available)
    if sample.cpu_pressure is not None:
        message.cpu.psi.CopyFrom(_pressure(sample.cpu_pressure))
    if sample.memory_pressure is not None:
        message.memory.psi.CopyFrom(_pressure(sample.memory_pressure))
    if sample.io_pressure is not None:
        message.io.timestamp = sample.timestamp_ns
        message.io.psi.CopyFrom(_pressure(sample.io_pressure))
    return message


def pod_stats(sample: PodSample) -> api_pb2.PodSandboxStats:
    """One pod's message."""
    box = sample.box
    metadata = box.spec.metadata
    message = api_pb2.PodSandboxStats(
        attributes=api_pb2.PodSandboxAttributes(
            id=box.id,
            metadata=api_pb2.PodSandboxMetadata(
                name=metadata.name,
                uid=metadata.uid,
                namespace=metadata.namespace,
                attempt=metadata.attempt,
            ),
            labels=box.spec.labels,
            annotations=box.spec.annotations,
        )
    )
    linux = message.linux
    linux.cpu.timestamp = linux.memory.timestamp = sample.timestamp_ns
    _fill(linux.cpu, "usage_core_nano_seconds", sample.cgroup.get("cpu_usage_ns"))
    for field, key in (
        ("working_set_bytes", "memory_working_set"),
        ("available_bytes", "memory_available"),
        ("usage_bytes", "memory_usage"),
        ("rss_bytes", "memory_rss"),
        ("page_faults", "page_faults"),
        ("major_page_faults", "major_page_faults"),
    ):
        _fill(linux.memory, field, sample.cgroup.get(key))
    linux.process.timestamp = sample.timestamp_ns
    _fill(linux.process, "process_count", sample.processes)
    if sample.interfaces:  # the kubelet falls over a network without a default interface
        linux.network.timestamp = sample.timestamp_ns
        linux.network.interfaces.extend(_interface(one) for one in sample.interfaces)
        named = {one.name: one for one in linux.network.interfaces}
        default = named.get(_DEFAULT_INTERFACE, linux.network.interfaces[0])
        linux.network.default_interface.CopyFrom(default)
    linux.containers.extend(container_stats(one) for one in sample.containers)
    return message


def _interface(interface: Interface) -> api_pb2.NetworkInterfaceUsage:
    return api_pb2.NetworkInterfaceUsage(
        name=interface.name,
        rx_bytes=api_pb2.UInt64Value(value=interface.rx_bytes),
        rx_errors=api_pb2.UInt64Value(value=interface.rx_errors),
        tx_bytes=api_pb2.UInt64Value(value=interface.tx_bytes),
        tx_errors=api_pb2.UInt64Value(value=interface.tx_errors),
    )


def _fill(message: Message, field: str, value: int | None) -> None:
    if value is not None:
        getattr(message, field).value = value


def _pressure(pair: PressurePair) -> api_pb2.PsiStats:
    full, some = (
        api_pb2.PsiData(Total=one.total_us, Avg10=one.avg10, Avg60=one.avg60, Avg300=one.avg300)
        for one in (pair.full, pair.some)
    )
    return api_pb2.PsiStats(Full=full, Some=some)
