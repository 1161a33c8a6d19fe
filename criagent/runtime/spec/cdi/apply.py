# SPDX-License-Identifier: Apache-2.0
"""CDI edits applied to an OCI specification: a pure function.

As in the reference implementation: a variable, device node or mount replaces one of the same name
or path, a node belongs to the container's user unless its owner is stated, and mounts are ordered
outer before inner afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from criagent.runtime.spec.cdi.file import Hook, IntelRdt, Mount
from criagent.runtime.spec.inputs import CdiEdits, CdiNode, OciObject
from criagent.runtime.spec.mounts.targets import cleaned


def apply_cdi(spec: OciObject, edits: CdiEdits) -> OciObject:
    """Apply `edits` to `spec` in place. Groups are already part of the user."""
    process, linux = spec["process"], spec["linux"]
    process["env"] = _merged_env(process["env"], edits.env)
    user = process["user"]
    linux["devices"] = _devices(linux["devices"], edits.nodes, (user["uid"], user["gid"]))
    linux["resources"]["devices"] += [_rule(node) for node in edits.nodes if node.kind in "bc"]
    if edits.net_devices:
        linux["netDevices"] = {
            device.host_interface_name: {"name": device.name} for device in edits.net_devices
        }
    if edits.mounts:
        has_userns = any(namespace["type"] == "user" for namespace in linux["namespaces"])
        spec["mounts"] = _mounts(spec["mounts"], edits.mounts, has_userns=has_userns)
    for hook in edits.hooks:
        spec.setdefault("hooks", {}).setdefault(hook.hook_name, []).append(_hook(hook))
    if edits.intel_rdt is not None:
        linux["intelRdt"] = _rdt(edits.intel_rdt)
    return spec


def _merged_env(env: Iterable[str], more: Iterable[str]) -> list[str]:
    merged = {entry.partition("=")[0]: entry for entry in env}
    merged.update((entry.partition("=")[0], entry) for entry in more)
    return list(merged.values())


def _devices(
    devices: list[OciObject], nodes: Iterable[CdiNode], owner: tuple[int, int]
) -> list[OciObject]:
    by_path = {device["path"]: device for device in devices}
    for node in nodes:
        by_path.pop(node.path, None)
        by_path[node.path] = _device(node, owner)
    return list(by_path.values())


def _device(node: CdiNode, owner: tuple[int, int]) -> OciObject:
    device: OciObject = {
        "path": node.path,
        "type": node.kind,
        "uid": owner[0] if node.uid is None else node.uid,
        "gid": owner[1] if node.gid is None else node.gid,
    }
    if node.kind in "bc":
        device |= {"major": node.major, "minor": node.minor}
    if node.mode is not None:
        device["fileMode"] = node.mode
    return device


def _rule(node: CdiNode) -> OciObject:
    numbers = {"major": node.major, "minor": node.minor}
    return {"allow": True, "type": node.kind, "access": node.access, **numbers}


def _mounts(
    mounts: Iterable[OciObject], more: Iterable[Mount], *, has_userns: bool
) -> list[OciObject]:
    by_place = {mount["destination"]: mount for mount in mounts}
    for mount in more:
        place = cleaned(mount.container_path)
        by_place.pop(place, None)
        by_place[place] = _mount(mount, place, has_userns=has_userns)
    return sorted(
        by_place.values(), key=lambda mount: len(PurePosixPath(mount["destination"]).parts)
    )


def _mount(mount: Mount, place: str, *, has_userns: bool) -> OciObject:
    options = list(mount.options)
    bind = next((option for option in options if option in {"bind", "rbind"}), "")
    if not bind and mount.type in {"", "none", "bind"}:
        bind = "rbind"  # without a type nothing else can be meant
        options.insert(0, bind)
    if bind and has_userns and not {"idmap", "ridmap"} & set(options):
        options.append("ridmap" if bind == "rbind" else "idmap")
    kind = "bind" if bind else mount.type
    return {
        "destination": place,
        "type": kind,
        "source": mount.host_path,
        "options": options,
    }


def _hook(hook: Hook) -> OciObject:
    made: OciObject = {"path": hook.path}
    if hook.args:
        made["args"] = list(hook.args)
    if hook.env:
        made["env"] = list(hook.env)
    if hook.timeout is not None:
        made["timeout"] = hook.timeout
    return made


def _rdt(rdt: IntelRdt) -> OciObject:
    fields: OciObject = {
        "closID": rdt.clos_id,
        "l3CacheSchema": rdt.l3_cache_schema,
        "memBwSchema": rdt.mem_bw_schema,
        "schemata": list(rdt.schemata),
        "enableMonitoring": rdt.enable_monitoring,
        "enableCMT": rdt.enable_cmt,
        "enableMBM": rdt.enable_mbm,
    }
    return {key: value for key, value in fields.items() if value}
