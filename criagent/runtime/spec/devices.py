# SPDX-License-Identifier: Apache-2.0
"""Devices of a container: nodes to create and access rules, from the host's nodes."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from criagent.base.errors import InvalidRequestError
from criagent.config.defaults import values
from criagent.config.defaults.pod_annotations import DEVICES
from criagent.config.defaults.values import DevicePath
from criagent.kernel.mount import MountEntry, mountinfo
from criagent.model.container import ContainerSecurity, ContainerSpec, Device
from criagent.model.sandbox import SandboxSpec
from criagent.runtime.node.defaults import ContainerDefaults
from criagent.runtime.node.handlers import HandlerFacts
from criagent.runtime.spec.inputs import OciObject, ResolvedDevice
from criagent.runtime.spec.mounts.host_paths import local_path

# Within /dev: what every container has of its own, or what leads elsewhere.
_NOT_HANDED_ON = frozenset(
    {"console", "pts", "shm", "mqueue", "fd", ".udev", ".lxc", ".lxd-mounts"}
)
_DEV = Path("/dev")
_ACCESS = frozenset("rwm")
_ANNOTATED_MOST = 100
# What the runtime creates in every /dev (OCI runtime specification, "Default Devices"), and ptys.
_ALWAYS: tuple[tuple[str, int | None, int | None], ...] = (
    ("c", 1, 3),  # null
    ("c", 1, 5),  # zero
    ("c", 1, 7),  # full
    ("c", 1, 8),  # random
    ("c", 1, 9),  # urandom
    ("c", 5, 0),  # tty
    ("c", 5, 1),  # console
    ("c", 5, 2),  # ptmx
    ("c", 136, None),  # pts/*
)


def with_default_devices(
    spec: ContainerSpec, pod: SandboxSpec, defaults: ContainerDefaults, handler: HandlerFacts
) -> ContainerSpec:
    """`spec` with the devices of every container, and those of the pod's annotation, before its
    own. Raises InvalidRequestError for an annotation that is not valid.
    """
    more = [_device(found) for found in defaults.devices]
    if (found := defaults.workloads.annotation(handler, pod, DEVICES)) is not None:
        more += _annotated(*found, defaults.allowed_devices)
    return dataclasses.replace(spec, devices=(*more, *spec.devices)) if more else spec


def _annotated(name: str, text: str, allowed: frozenset[str]) -> Iterator[Device]:
    """The devices of an annotation such as "/dev/fuse,/dev/sdc:/dev/xvdc:r"."""
    entries = [entry for entry in text.split(",") if entry]
    if len(entries) > _ANNOTATED_MOST:
        raise InvalidRequestError(f"annotation {name}: more than {_ANNOTATED_MOST} devices")
    for entry in entries:
        try:
            found = values.device(entry)
        except ValueError as error:
            raise InvalidRequestError(f"annotation {name}: {error}") from None
        if found.host not in allowed:
            raise InvalidRequestError(
                f"annotation {name}: device {found.host[:200]} is not in runtime.allowed_devices"
            )
        yield _device(found)


def _device(found: DevicePath) -> Device:
    return Device(host_path=found.host, container_path=found.container, permissions=found.access)


def resolve_devices(
    spec: ContainerSpec, *, host_devices: bool, owned: bool = False, has_userns: bool = False
) -> tuple[ResolvedDevice, ...]:
    """The requested nodes of the host, and before them all of /dev with `host_devices`.

    In a user namespace (`has_userns`) its root is not the node's root: of all of /dev it gets only
    the nodes that everyone may use.

    With `owned`, requested nodes belong to the security context's user and group unless these are
    root, so that a container without privileges can open them.

    Reads the host: call it in a thread. Raises InvalidRequestError for anything that is not a
    device.
    """
    found: dict[str, ResolvedDevice] = {}
    if host_devices:
        for path in _nodes(_DEV):
            device = _node(path, str(path), "rwm")
            if device is not None and has_userns:
                device = _for_everybody(device)
            if device is not None:
                found[device.path] = device
    table = mountinfo() if spec.devices else []
    for request in spec.devices:
        for device in _requested(request, table):
            found[device.path] = _owned(device, spec.security) if owned else device
    return tuple(found.values())


def _for_everybody(device: ResolvedDevice) -> ResolvedDevice | None:
    access = "".join(letter for bit, letter in ((4, "r"), (2, "w")) if device.mode & bit)
    if not access:
        return None
    return dataclasses.replace(device, access=access, mode=(device.mode & 0o6) * 0o111)


def _owned(device: ResolvedDevice, security: ContainerSecurity) -> ResolvedDevice:
    return dataclasses.replace(
        device, uid=security.run_as_user or device.uid, gid=security.run_as_group or device.gid
    )


def device_nodes(devices: Iterable[ResolvedDevice]) -> list[OciObject]:
    """`linux.devices`."""
    return [
        {
            "path": device.path,
            "type": device.kind,
            "major": device.major,
            "minor": device.minor,
            "fileMode": device.mode,
            "uid": device.uid,
            "gid": device.gid,
        }
        for device in devices
    ]


def device_rules(devices: Iterable[ResolvedDevice], *, all_devices: bool) -> list[OciObject]:
    """`linux.resources.devices`: deny everything, then allow one by one; mknod stays possible."""
    if all_devices:
        return [{"allow": True, "access": "rwm"}]
    rules: list[OciObject] = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "access": "m"},
        {"allow": True, "type": "b", "access": "m"},
    ]
    for kind, major, minor in _ALWAYS:
        rule: OciObject = {"allow": True, "type": kind, "access": "rwm", "major": major}
        if minor is not None:
            rule["minor"] = minor
        rules.append(rule)
    for device in devices:
        numbers = {"major": device.major, "minor": device.minor}
        rules.append({"allow": True, "type": device.kind, "access": device.access, **numbers})
    return rules


def _requested(request: Device, table: Sequence[MountEntry]) -> Iterator[ResolvedDevice]:
    access = request.permissions or "rwm"
    if not set(access) <= _ACCESS or len(set(access)) != len(access):
        raise InvalidRequestError(
            f"device {request.host_path}: permissions {access[:20]!r} contain characters "
            "other than r, w and m"
        )
    host, target = request.host_path, request.container_path or request.host_path
    for text in (host, target):
        if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
            raise InvalidRequestError(
                f'device {text[:200]!r}: the path must be absolute, without "." or ".."'
            )
    real = _real(host, table)
    if real.is_dir():
        for path in _nodes(real):
            device = _node(path, f"{target.rstrip('/')}/{path.relative_to(real)}", access)
            if device is not None:
                yield device
        return
    device = _node(real, target, access)
    if device is None:
        raise InvalidRequestError(f"device {host} is neither a device node nor a directory")
    yield device


def _real(host: str, table: Sequence[MountEntry]) -> Path:
    """The path without symlinks. One on a network file system is refused without an access."""
    try:
        real = local_path(host, table)
        if real is None:
            raise InvalidRequestError(f"device {host}: the path is not on a local file system")
        os.lstat(real)
    except OSError as exc:
        raise InvalidRequestError(
            f"device {host}: the path cannot be resolved on this node: {exc.strerror}"
        ) from None
    return Path(real)


def _nodes(directory: Path) -> Iterator[Path]:
    """Everything below `directory` that is neither a directory nor a symlink."""
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except FileNotFoundError:
        return  # unplugged meanwhile
    for entry in entries:
        if directory == _DEV and entry.name in _NOT_HANDED_ON:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _nodes(Path(entry.path))
        elif not entry.is_symlink():
            yield Path(entry.path)


def _node(path: Path, target: str, access: str) -> ResolvedDevice | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    if stat.S_ISCHR(facts.st_mode):
        kind = "c"
    elif stat.S_ISBLK(facts.st_mode):
        kind = "b"
    else:
        return None
    return ResolvedDevice(
        path=target,
        kind="c" if kind == "c" else "b",
        major=os.major(facts.st_rdev),
        minor=os.minor(facts.st_rdev),
        mode=stat.S_IMODE(facts.st_mode),
        uid=facts.st_uid,
        gid=facts.st_gid,
        access=access,
    )
