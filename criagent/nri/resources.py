# SPDX-License-Identifier: Apache-2.0
"""Merging of resources that plugins set, and their forms in CRI and OCI."""

from __future__ import annotations

from criagent._proto import nri_pb2
from criagent.base.errors import UnsupportedError
from criagent.model.common import HugepageLimit, Resources
from criagent.nri.owners import Field, Owners
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.spec.inputs import OciObject

_MEMORY = {
    "limit": Field.MemLimit,
    "reservation": Field.MemReservation,
    "swap": Field.MemSwapLimit,
    "kernel": Field.MemKernelLimit,
    "kernel_tcp": Field.MemTCPLimit,
    "swappiness": Field.MemSwappiness,
    "disable_oom_killer": Field.MemDisableOomKiller,
    "use_hierarchy": Field.MemUseHierarchy,
}
_CPU = {
    "shares": Field.CPUShares,
    "quota": Field.CPUQuota,
    "period": Field.CPUPeriod,
    "realtime_runtime": Field.CPURealtimeRuntime,
    "realtime_period": Field.CPURealtimePeriod,
}
_CPU_SETS = {"cpus": Field.CPUSetCPUs, "mems": Field.CPUSetMems}
_CLASSES = {"blockio_class": Field.BlockioClass, "rdt_class": Field.RdtClass}


def merge(
    given: nri_pb2.LinuxResources,
    into: nri_pb2.LinuxResources,
    *,
    owners: Owners,
    container_id: str,
    plugin: str,
) -> None:
    """Set in `into` what `given` sets, for `plugin`. Raises ConflictError."""

    def claim(field: int, key: str | None = None) -> None:
        owners.claim(container_id, field, plugin, key)

    for part, fields in (("memory", _MEMORY), ("cpu", _CPU)):
        source, target = getattr(given, part), getattr(into, part)
        for name, field in fields.items():
            if source.HasField(name):
                claim(field)
                getattr(target, name).CopyFrom(getattr(source, name))
    for name, field in _CPU_SETS.items():
        if value := getattr(given.cpu, name):
            claim(field)
            setattr(into.cpu, name, value)
    for name, field in _CLASSES.items():
        if given.HasField(name):
            claim(field)
            getattr(into, name).CopyFrom(getattr(given, name))
    for limit in given.hugepage_limits:
        claim(Field.HugepageLimits, limit.page_size)
        _replace_hugepages(into, limit)
    for key, value in given.unified.items():
        claim(Field.CgroupsUnified, key)
        into.unified[key] = value
    if given.HasField("pids"):
        claim(Field.PidsLimit)
        into.pids.CopyFrom(given.pids)
    into.devices.extend(given.devices)


def _replace_hugepages(into: nri_pb2.LinuxResources, limit: nri_pb2.HugepageLimit) -> None:
    kept = [other for other in into.hugepage_limits if other.page_size != limit.page_size]
    del into.hugepage_limits[:]
    into.hugepage_limits.extend([*kept, limit])


def of_cri(resources: Resources) -> nri_pb2.LinuxResources:
    """What a caller of CRI asked for, without what it did not give."""
    message = nri_pb2.LinuxResources(unified=resources.unified)
    for name, value in (
        ("limit", resources.memory_limit_in_bytes),
        ("swap", resources.memory_swap_limit_in_bytes),
    ):
        if value:
            getattr(message.memory, name).value = value
    for name, value in (
        ("shares", resources.cpu_shares),
        ("quota", resources.cpu_quota),
        ("period", resources.cpu_period),
    ):
        if value:
            getattr(message.cpu, name).value = value
    message.cpu.cpus, message.cpu.mems = resources.cpuset_cpus, resources.cpuset_mems
    for limit in resources.hugepage_limits:
        message.hugepage_limits.add(page_size=limit.page_size, limit=limit.limit)
    return message


def to_cri(message: nri_pb2.LinuxResources) -> Resources:
    """The part of `message` that CRI has, too; what is not set is 0 or empty."""
    return Resources(
        cpu_period=message.cpu.period.value,
        cpu_quota=message.cpu.quota.value,
        cpu_shares=message.cpu.shares.value,
        memory_limit_in_bytes=message.memory.limit.value,
        memory_swap_limit_in_bytes=message.memory.swap.value,
        cpuset_cpus=message.cpu.cpus,
        cpuset_mems=message.cpu.mems,
        hugepage_limits=tuple(
            HugepageLimit(page_size=limit.page_size, limit=limit.limit)
            for limit in message.hugepage_limits
        ),
        unified=dict(message.unified),
    )


def beyond_cri(message: nri_pb2.LinuxResources) -> OciObject:
    """The part that CRI does not have, as `linux.resources` of OCI."""
    memory: OciObject = {}
    if message.memory.HasField("reservation"):
        memory["reservation"] = message.memory.reservation.value
    cpu: OciObject = {}
    if message.cpu.HasField("realtime_runtime"):
        cpu["realtimeRuntime"] = message.cpu.realtime_runtime.value
    if message.cpu.HasField("realtime_period"):
        cpu["realtimePeriod"] = message.cpu.realtime_period.value
    pids: OciObject = {"limit": message.pids.limit} if message.HasField("pids") else {}
    parts = {"memory": memory, "cpu": cpu, "pids": pids}
    return {name: part for name, part in parts.items() if part}


def available(extra: OciObject, node: NodeFacts) -> OciObject:
    """`extra` as far as the node has the controllers, whose names are those of its parts.

    Raises UnsupportedError for others, unless runtime.missing_controllers is "ignore".
    """
    for name in extra:
        if name not in node.controllers and node.missing_controllers == "error":
            raise UnsupportedError(
                f'an NRI plugin sets a limit of the cgroup controller "{name}", which is not '
                'available on this node; set runtime.missing_controllers = "ignore" to run '
                "without it"
            )
    return {name: part for name, part in extra.items() if name in node.controllers}


def of_oci(found: OciObject) -> nri_pb2.LinuxResources:
    """`linux.resources` of an OCI specification."""
    message = nri_pb2.LinuxResources(unified=found.get("unified") or {})
    _set(message.memory, found.get("memory") or {}, _OCI_MEMORY)
    cpu = found.get("cpu") or {}
    _set(message.cpu, cpu, _OCI_CPU)
    message.cpu.cpus, message.cpu.mems = cpu.get("cpus", ""), cpu.get("mems", "")
    for limit in found.get("hugepageLimits") or ():
        message.hugepage_limits.add(page_size=limit["pageSize"], limit=limit["limit"])
    for rule in found.get("devices") or ():
        made = message.devices.add(
            allow=rule["allow"], type=rule.get("type", ""), access=rule.get("access", "")
        )
        _set(made, rule, {"major": "major", "minor": "minor"})
    if (limit := (found.get("pids") or {}).get("limit")) is not None:
        message.pids.limit = limit
    return message


_OCI_MEMORY = {
    "limit": "limit",
    "reservation": "reservation",
    "swap": "swap",
    "kernel": "kernel",
    "kernelTCP": "kernel_tcp",
    "swappiness": "swappiness",
    "disableOOMKiller": "disable_oom_killer",
    "useHierarchy": "use_hierarchy",
}
_OCI_CPU = {
    "shares": "shares",
    "quota": "quota",
    "period": "period",
    "realtimeRuntime": "realtime_runtime",
    "realtimePeriod": "realtime_period",
}


def _set(message: object, found: OciObject, names: dict[str, str]) -> None:
    """Set the optional fields of `message` that `found` has under OCI's names."""
    for oci_name, nri_name in names.items():
        if (value := found.get(oci_name)) is not None:
            getattr(message, nri_name).value = value
