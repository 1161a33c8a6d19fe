# SPDX-License-Identifier: Apache-2.0
"""CDI devices of a container: names to edits, completed with facts of the host."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from criagent.base.errors import InvalidRequestError, UnsupportedError
from criagent.kernel.mount import MountEntry, mountinfo
from criagent.runtime.node.handlers import HandlerFacts
from criagent.runtime.spec.cdi.file import DeviceNode, Edits, IntelRdt
from criagent.runtime.spec.cdi.registry import CdiDevice, CdiFolders
from criagent.runtime.spec.inputs import CdiEdits, CdiNode
from criagent.runtime.spec.mounts.host_paths import local_path

_RESCTRL = Path("/sys/fs/resctrl/schemata")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CdiDevices:
    """Looks devices up. `handlers` say which edits each OCI runtime supports."""

    folders: CdiFolders
    handlers: Mapping[str, HandlerFacts]
    table: Callable[[], Sequence[MountEntry]] = mountinfo

    def edits(self, names: Sequence[str], handler: str) -> CdiEdits:
        """The edits of the named devices, in the order of the request; edits that a specification
        makes for all its devices come once, before those of its first device.

        Reads files and devices: call it in a thread. Raises InvalidRequestError for unknown devices
        and missing nodes, UnsupportedError for edits that the runtime or the kernel lacks.
        """
        if not names:
            return CdiEdits()
        devices = self.folders.devices(names)
        parts: list[tuple[CdiDevice, Edits]] = []
        files: set[Path] = set()
        for device in devices:
            if device.file not in files:
                files.add(device.file)
                parts.append((device, device.common))
            parts.append((device, device.edits))
        for device, edits in parts:
            self._check(device, edits, handler)
        table = self.table()
        rdt = [edits.intel_rdt for _, edits in parts if edits.intel_rdt is not None]
        return CdiEdits(
            env=tuple(entry for _, edits in parts for entry in edits.env),
            nodes=tuple(
                _node(device, node, table) for device, edits in parts for node in edits.device_nodes
            ),
            mounts=tuple(mount for _, edits in parts for mount in edits.mounts),
            hooks=tuple(hook for _, edits in parts for hook in edits.hooks),
            groups=tuple(gid for _, edits in parts for gid in edits.additional_gids if gid),
            net_devices=tuple(item for _, edits in parts for item in edits.net_devices),
            intel_rdt=rdt[-1] if rdt else None,
        )

    def _check(self, device: CdiDevice, edits: Edits, handler: str) -> None:
        facts = self.handlers[handler]
        if edits.net_devices and not facts.net_devices:
            raise UnsupportedError(
                f"CDI device {device.name} ({device.file}) moves a network interface, which the "
                f"runtime handler {handler} ({facts.version}) does not support"
            )
        if edits.intel_rdt is not None:
            _check_rdt(device, edits.intel_rdt, facts)


def _check_rdt(device: CdiDevice, rdt: IntelRdt, facts: HandlerFacts) -> None:
    what = f"CDI device {device.name} ({device.file}) has intelRdt"
    if not _RESCTRL.exists():
        raise UnsupportedError(f"{what}, but no resctrl file system is mounted on /sys/fs/resctrl")
    newer = rdt.schemata or rdt.enable_monitoring
    if not facts.intel_rdt or (newer and not facts.intel_rdt_schemata):
        raise UnsupportedError(
            f"{what}, which the runtime handler {facts.name} ({facts.version}) does not support"
        )


def _node(device: CdiDevice, node: DeviceNode, table: Sequence[MountEntry]) -> CdiNode:
    """The node with type, numbers and mode; the host's values where the specification has none.

    A node with type and major number need not exist on the host: vendors may specify all of it.
    """
    whole = node.type == "p" or (node.type != "" and node.major != 0)
    found = _on_host(node.host_path or node.path, table)
    if found is None and not whole:
        raise InvalidRequestError(
            f"CDI device {device.name} ({device.file}): {node.host_path or node.path} is not a "
            "device node on this node"
        )
    kind = _kind(node.type) if node.type else found.kind if found else "c"
    if found is not None and not whole and found.kind != kind:
        raise InvalidRequestError(
            f"CDI device {device.name} ({device.file}): {node.host_path or node.path} has "
            f'the type "{found.kind}" instead of "{kind}"'
        )
    mode = node.file_mode
    if mode is None and found is not None:
        mode = found.mode
    from_host = found if found is not None and not node.major and not whole else None
    return CdiNode(
        path=node.path,
        kind=kind,
        major=from_host.major if from_host else node.major,
        minor=from_host.minor if from_host else node.minor,
        mode=None if mode is None else mode & 0o7777,
        uid=node.uid,
        gid=node.gid,
        access={"": "rwm", "none": ""}.get(node.permissions, node.permissions),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    kind: Literal["c", "b", "p"]
    major: int
    minor: int
    mode: int


def _on_host(path: str, table: Sequence[MountEntry]) -> _Found | None:
    """The device node behind `path`, links followed. None for anything else, and for a path on a
    file system that may not answer.
    """
    try:
        real = local_path(path, table)
        facts = None if real is None else os.lstat(real)
    except OSError:
        return None
    if facts is None:
        return None
    for test, kind in ((stat.S_ISCHR, "c"), (stat.S_ISBLK, "b"), (stat.S_ISFIFO, "p")):
        if test(facts.st_mode):
            return _Found(
                kind=_kind(kind),
                major=os.major(facts.st_rdev),
                minor=os.minor(facts.st_rdev),
                mode=stat.S_IMODE(facts.st_mode),
            )
    return None


def _kind(letter: str) -> Literal["c", "b", "p"]:
    """mknod(1) calls an unbuffered character device "u"."""
    return "b" if letter == "b" else "p" if letter == "p" else "c"
