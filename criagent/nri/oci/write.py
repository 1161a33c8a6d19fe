# SPDX-License-Identifier: Apache-2.0
"""Adjustments by plugins written into an OCI specification: entry by entry, in place.

Order and meaning follow the generator that NRI's runtimes in Go use. What differs: a removal holds
for every list, a limit replaces one of the same type, and the default error number of a seccomp
policy counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from criagent._proto import nri_pb2
from criagent.nri.oci.read import HOOKS
from criagent.runtime.spec.inputs import OciObject
from criagent.runtime.spec.mounts.targets import cleaned

_PROPAGATIONS = ("rprivate", "rslave", "rshared")  # from closed to open
RELABEL = "relabel"  # not an option of mount(8): a request to label the source


def write_map(found: OciObject, given: Mapping[str, str]) -> None:
    """Annotations and sysctls: entries to set, and those with "-" before them to remove."""
    for key in sorted(given):
        if key.startswith("-"):
            found.pop(key[1:], None)
    found.update({key: value for key, value in given.items() if not key.startswith("-")})


def write_env(process: OciObject, given: Iterable[nri_pb2.KeyValue]) -> None:
    """Variables: an existing one keeps its place."""
    env = {entry.partition("=")[0]: entry for entry in process["env"]}
    for one in given:
        if one.key.startswith("-"):
            env.pop(one.key[1:], None)
        else:
            env[one.key] = f"{one.key}={one.value}"
    process["env"] = list(env.values())


def write_rlimits(process: OciObject, given: Iterable[nri_pb2.POSIXRlimit]) -> None:
    """Limits: one for each type."""
    limits = {limit["type"]: limit for limit in process.get("rlimits") or ()}
    for one in given:
        limits[one.type] = {"type": one.type, "soft": one.soft, "hard": one.hard}
    process["rlimits"] = list(limits.values())


def write_hooks(spec: OciObject, given: nri_pb2.Hooks) -> None:
    """Hooks are appended."""
    for oci_name, nri_name in HOOKS.items():
        for hook in getattr(given, nri_name):
            made: OciObject = {"path": hook.path}
            if hook.args:
                made["args"] = list(hook.args)
            if hook.env:
                made["env"] = list(hook.env)
            if hook.HasField("timeout"):
                made["timeout"] = hook.timeout.value
            spec.setdefault("hooks", {}).setdefault(oci_name, []).append(made)


def write_devices(linux: OciObject, given: Iterable[nri_pb2.LinuxDevice]) -> None:
    """Device nodes, each with the rule that lets the container use it."""
    nodes = {node["path"]: node for node in linux["devices"]}
    for one in given:
        nodes.pop(one.path.removeprefix("-"), None)
        if one.path.startswith("-"):
            continue
        node: OciObject = {"path": one.path, "type": one.type}
        if one.type != "p":
            node |= {"major": one.major, "minor": one.minor}
        for oci_name, nri_name in (("fileMode", "file_mode"), ("uid", "uid"), ("gid", "gid")):
            if one.HasField(nri_name):
                node[oci_name] = getattr(one, nri_name).value
        nodes[one.path] = node
        if one.type != "p":
            access = "rwm" if one.type == "b" else "rw"
            rule = {"allow": True, "type": one.type, "access": access}
            rule |= {"major": one.major, "minor": one.minor}
            linux["resources"].setdefault("devices", []).append(rule)
    linux["devices"] = list(nodes.values())


def device_rules(given: Iterable[nri_pb2.LinuxDeviceCgroup]) -> list[OciObject]:
    """Rules of the device cgroup."""
    rules = []
    for one in given:
        rule: OciObject = {"allow": one.allow, "access": one.access}
        if one.type:
            rule["type"] = one.type
        for name in ("major", "minor"):
            if one.HasField(name):
                rule[name] = getattr(one, name).value
        rules.append(rule)
    return rules


def write_namespaces(linux: OciObject, given: Iterable[nri_pb2.LinuxNamespace]) -> None:
    """Namespaces: one of a type is replaced, one that is removed is the node's."""
    kinds = {one["type"]: one for one in linux["namespaces"]}
    for one in given:
        if one.type.startswith("-"):
            kinds.pop(one.type[1:], None)
        else:
            kinds[one.type] = {"type": one.type} | ({"path": one.path} if one.path else {})
    linux["namespaces"] = list(kinds.values())


def write_net_devices(linux: OciObject, given: Mapping[str, nri_pb2.LinuxNetDevice]) -> None:
    """Interfaces of the node that move into the container's network namespace."""
    found = linux.setdefault("netDevices", {})
    for name in sorted(given):
        if name.startswith("-"):
            found.pop(name[1:], None)
    for name, device in given.items():
        if not name.startswith("-"):
            found[name] = {"name": device.name} if device.name else {}
    if not found:
        del linux["netDevices"]


def write_mounts(spec: OciObject, given: Iterable[nri_pb2.Mount]) -> None:
    """Mounts: one at the same place is replaced; the outer come before the inner."""
    places = {mount["destination"]: mount for mount in spec["mounts"]}
    for one in given:
        if one.destination.startswith("-"):
            places.pop(cleaned(one.destination[1:]), None)
            continue
        place = cleaned(one.destination)
        places.pop(place, None)
        options = [option for option in one.options if option != RELABEL]
        places[place] = {
            "destination": place,
            "type": one.type or _kind(options),
            "source": one.source,
            "options": options,
        }
        for propagation in _PROPAGATIONS[1:]:
            if propagation in options:
                _open_root(spec["linux"], propagation)
    spec["mounts"] = sorted(
        places.values(), key=lambda mount: len(PurePosixPath(mount["destination"]).parts)
    )


def _kind(options: list[str]) -> str:
    return "bind" if {"bind", "rbind"} & set(options) else "none"


def _open_root(linux: OciObject, propagation: str) -> None:
    """Make the root as open as `propagation` needs it."""
    now = linux.get("rootfsPropagation", "rprivate")
    rank = _PROPAGATIONS.index(now) if now in _PROPAGATIONS else 0
    if _PROPAGATIONS.index(propagation) > rank:
        linux["rootfsPropagation"] = propagation


def seccomp(given: nri_pb2.LinuxSeccomp) -> OciObject:
    """`linux.seccomp`."""
    made: OciObject = {"defaultAction": given.default_action}
    if given.HasField("default_errno"):
        made["defaultErrnoRet"] = given.default_errno.value
    for oci_name, value in (
        ("architectures", list(given.architectures)),
        ("flags", list(given.flags)),
        ("listenerPath", given.listener_path),
        ("listenerMetadata", given.listener_metadata),
        ("syscalls", [_syscall(rule) for rule in given.syscalls]),
    ):
        if value:
            made[oci_name] = value
    return made


def _syscall(rule: nri_pb2.LinuxSyscall) -> OciObject:
    made: OciObject = {"names": list(rule.names), "action": rule.action}
    if rule.HasField("errno_ret"):
        made["errnoRet"] = rule.errno_ret.value
    if rule.args:
        made["args"] = [
            {"index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op}
            for arg in rule.args
        ]
    return made


def scheduler(given: nri_pb2.LinuxScheduler) -> OciObject:
    """`process.scheduler`."""
    made: OciObject = {"policy": _name(nri_pb2.LinuxSchedulerPolicy, given.policy)}
    for name in ("nice", "priority", "runtime", "deadline", "period"):
        if value := getattr(given, name):
            made[name] = value
    if given.flags:
        made["flags"] = [_name(nri_pb2.LinuxSchedulerFlag, flag) for flag in given.flags]
    return made


def io_priority(given: nri_pb2.LinuxIOPriority) -> OciObject:
    """`process.ioPriority`."""
    kind = _name(nri_pb2.IOPrioClass, getattr(given, "class"))
    return {"class": kind, "priority": given.priority}


def memory_policy(given: nri_pb2.LinuxMemoryPolicy) -> OciObject:
    """`linux.memoryPolicy`."""
    made: OciObject = {"mode": _name(nri_pb2.MpolMode, given.mode), "nodes": given.nodes}
    if given.flags:
        made["flags"] = [_name(nri_pb2.MpolFlag, flag) for flag in given.flags]
    return made


def _name(enum: Any, number: int) -> str:
    """The name of a number; the number itself if it has none, which the OCI runtime refuses."""
    names: dict[int, str] = {value: name for name, value in enum.items()}
    return names.get(number, str(number))
