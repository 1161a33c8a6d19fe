# SPDX-License-Identifier: Apache-2.0
"""Parts of an OCI specification as messages of NRI."""

from __future__ import annotations

from typing import Any

from criagent._proto import nri_pb2
from criagent.runtime.spec.inputs import OciObject

HOOKS = {
    "prestart": "prestart",
    "createRuntime": "create_runtime",
    "createContainer": "create_container",
    "startContainer": "start_container",
    "poststart": "poststart",
    "poststop": "poststop",
}


def hooks(found: OciObject) -> nri_pb2.Hooks:
    """`hooks`."""
    message = nri_pb2.Hooks()
    for oci_name, nri_name in HOOKS.items():
        for hook in found.get(oci_name) or ():
            made = getattr(message, nri_name).add(
                path=hook["path"], args=hook.get("args") or (), env=hook.get("env") or ()
            )
            if (timeout := hook.get("timeout")) is not None:
                made.timeout.value = timeout
    return message


def devices(found: list[OciObject]) -> list[nri_pb2.LinuxDevice]:
    """`linux.devices`."""
    made = []
    for device in found:
        message = nri_pb2.LinuxDevice(
            path=device["path"],
            type=device["type"],
            major=device.get("major", 0),
            minor=device.get("minor", 0),
        )
        for oci_name, nri_name in (("fileMode", "file_mode"), ("uid", "uid"), ("gid", "gid")):
            if (value := device.get(oci_name)) is not None:
                getattr(message, nri_name).value = value
        made.append(message)
    return made


def seccomp(found: OciObject) -> nri_pb2.LinuxSeccomp:
    """`linux.seccomp`."""
    message = nri_pb2.LinuxSeccomp(
        default_action=found["defaultAction"],
        architectures=found.get("architectures") or (),
        flags=found.get("flags") or (),
        listener_path=found.get("listenerPath", ""),
        listener_metadata=found.get("listenerMetadata", ""),
    )
    if (errno := found.get("defaultErrnoRet")) is not None:
        message.default_errno.value = errno
    for rule in found.get("syscalls") or ():
        syscall = message.syscalls.add(names=rule["names"], action=rule["action"])
        if (errno := rule.get("errnoRet")) is not None:
            syscall.errno_ret.value = errno
        for arg in rule.get("args") or ():
            syscall.args.add(
                index=arg["index"],
                value=arg["value"],
                value_two=arg.get("valueTwo", 0),
                op=arg["op"],
            )
    return message


def scheduler(found: OciObject) -> nri_pb2.LinuxScheduler:
    """`process.scheduler`."""
    return nri_pb2.LinuxScheduler(
        policy=_number(nri_pb2.LinuxSchedulerPolicy, found.get("policy", "")),
        nice=found.get("nice", 0),
        priority=found.get("priority", 0),
        flags=[_number(nri_pb2.LinuxSchedulerFlag, flag) for flag in found.get("flags") or ()],
        runtime=found.get("runtime", 0),
        deadline=found.get("deadline", 0),
        period=found.get("period", 0),
    )


def io_priority(found: OciObject) -> nri_pb2.LinuxIOPriority:
    """`process.ioPriority`."""
    message = nri_pb2.LinuxIOPriority(priority=found.get("priority", 0))
    setattr(message, "class", _number(nri_pb2.IOPrioClass, found.get("class", "")))
    return message


def rdt(found: OciObject) -> nri_pb2.LinuxRdt:
    """`linux.intelRdt`."""
    message = nri_pb2.LinuxRdt()
    message.clos_id.value = found.get("closID", "")
    message.schemata.value.extend(found.get("schemata") or ())
    message.enable_monitoring.value = found.get("enableMonitoring", False)
    return message


def _number(enum: Any, name: str) -> Any:
    """The number of a name; 0 for one that NRI does not have."""
    return dict(enum.items()).get(name, 0)
