# SPDX-License-Identifier: Apache-2.0
"""A handler's base specification under that of a container; pure.

What the pod or the agent sets wins. Environment, capabilities, resource limits and mounts are
merged where those of the container are built, since image and pod come on top of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from criagent.config.defaults.base_spec import BaseSpec, Device
from criagent.runtime.spec.inputs import OciObject
from criagent.runtime.spec.mounts.targets import cleaned

_PROCESS = ("scheduler", "ioPriority", "execCPUAffinity")
_LINUX = ("intelRdt", "personality", "memoryPolicy")


def with_base(made: OciObject, base: BaseSpec) -> OciObject:
    """`made` in place, with the parts of `base` that it does not have."""
    process, linux = made["process"], made["linux"]
    whole: OciObject = msgspec.to_builtins(base)
    process |= {key: value for key in _PROCESS if (value := whole["process"][key]) is not None}
    if base.process.user.umask is not None:
        process["user"]["umask"] = base.process.user.umask
    linux |= {key: value for key in _LINUX if (value := whole["linux"][key]) is not None}
    if base.linux.sysctl:
        linux["sysctl"] = dict(base.linux.sysctl)
    resources = {key: part for key, part in whole["linux"]["resources"].items() if key != "devices"}
    linux["resources"] = _merged(resources, linux["resources"])
    _add_devices(linux, base)
    hooks = {stage: _hooks(found) for stage, found in whole["hooks"].items() if found}
    if hooks:
        made["hooks"] = hooks
    if base.annotations:
        made["annotations"] = {**base.annotations, **made.get("annotations", {})}
    return made


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> OciObject:
    """Objects within objects are merged, anything else of `above` wins."""
    merged: OciObject = dict(below)
    for name, value in above.items():
        lower = merged.get(name)
        both = isinstance(value, dict) and isinstance(lower, dict)
        merged[name] = _merged(lower, value) if both and lower is not None else value
    return merged


def _add_devices(linux: OciObject, base: BaseSpec) -> None:
    """Devices of the file with their access, unless the container has another at the path."""
    taken = {device["path"] for device in linux["devices"]}
    for device in base.linux.devices:
        if device.path in taken:
            continue
        node = msgspec.to_builtins(device)
        linux["devices"].append({key: value for key, value in node.items() if value is not None})
        if device.type in {"c", "u", "b"}:
            linux["resources"]["devices"].append(_rule(device))


def _rule(device: Device) -> OciObject:
    kind = "c" if device.type == "u" else device.type
    numbers = {"major": device.major, "minor": device.minor}
    return {"allow": True, "type": kind, "access": "rwm", **numbers}


def base_mounts(base: BaseSpec, taken: set[str]) -> list[OciObject]:
    """Mounts of the file at paths that are not `taken`.

    A tmpfs at /run, which every file of `ctr oci spec` has, hides what images have there: it is
    left out, as containerd does.
    """
    return [
        {**msgspec.to_builtins(mount), "destination": place}
        for mount in base.mounts
        if (place := cleaned(mount.destination)) not in taken
        and not (place == "/run" and mount.type == "tmpfs")
    ]


def _hooks(found: list[OciObject]) -> list[OciObject]:
    return [{key: value for key, value in hook.items() if value} for hook in found]
