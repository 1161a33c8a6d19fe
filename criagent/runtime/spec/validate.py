# SPDX-License-Identifier: Apache-2.0
"""Requests checked before anything is created: impossible ones are refused with a reason."""

from __future__ import annotations

import os
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import PurePosixPath

from criagent.base.capabilities import NAMES
from criagent.base.errors import InvalidRequestError
from criagent.model.common import (
    CgroupMount,
    MountPropagation,
    NamespaceMode,
    ProfileType,
    SecurityProfile,
)
from criagent.model.container import ContainerSecurity, ContainerSpec, Mount
from criagent.model.sandbox import Sandbox, SandboxMetadata, SandboxSpec
from criagent.net.resolv import resolv_conf
from criagent.runtime.node.cgroup_names import validate_cgroup_parent
from criagent.runtime.spec import id_mappings
from criagent.runtime.spec.cdi.file import is_device_name
from criagent.runtime.spec.mounts.images import check_image_mount
from criagent.runtime.spec.mounts.targets import cleaned
from criagent.runtime.spec.security.capabilities import capability_sets
from criagent.runtime.spec.security.selinux import validate_selinux
from criagent.runtime.spec.sysctls import validate_sysctls
from criagent.runtime.spec.users import check_id

_HOSTNAME_LIMIT = 64  # bytes (man 2 sethostname); the kernel accepts any
_NAME_LIMIT = 1024
_LABELS_LIMIT = 1 << 20  # bytes; they are in every list answer
_CDI_LIMIT = 1000  # of one container
# Files below /proc that a bind may hide (lxcfs does); anything else there would undo a protection
# that runtimes rely on (CVE-2019-16884, CVE-2023-27561).
_PROC_FILES = frozenset(
    "cpuinfo diskstats loadavg meminfo slabinfo stat swaps sys/crypto/fips_enabled "
    "sys/kernel/ns_last_pid uptime".split()
)


def validate_sandbox_spec(spec: SandboxSpec) -> None:
    """Raises InvalidRequestError or UnsupportedError with the field's name."""
    what = f'sandbox "{spec.metadata.name[:80]}"'
    _pod_names(what, spec.metadata)
    _hostname(what, spec)
    if spec.log_directory:
        _absolute(f"{what}: log_directory", spec.log_directory)
    _labels(what, spec.labels, spec.annotations)
    namespaces = spec.security.namespaces
    _namespaces(what, namespaces.network, namespaces.ipc, namespaces.pid)
    id_mappings.validate_pod(what, namespaces)
    if namespaces.cgroup is not None:
        raise InvalidRequestError(
            f"{what}: cgroupns_options are for containers; leave them out of the sandbox"
        )
    _profiles(what, spec.security.seccomp, spec.security.apparmor)
    _ids(
        what,
        spec.security.run_as_user,
        spec.security.run_as_group,
        *spec.security.supplemental_groups,
    )
    validate_selinux(what, spec.security.selinux)
    validate_sysctls(
        spec.sysctls,
        own_network=namespaces.network is not NamespaceMode.NODE,
        own_ipc=namespaces.ipc is not NamespaceMode.NODE,
    )
    validate_cgroup_parent(spec.cgroup_parent)
    resolv_conf(spec.dns, "")
    for mapping in spec.port_mappings:
        for port in (mapping.host_port, mapping.container_port):
            if not 0 <= port < 65536:
                raise InvalidRequestError(f"{what}: port {port} is not between 0 and 65535")
        if mapping.host_ip:
            _address(what, mapping.host_ip)


def validate_container_spec(spec: ContainerSpec, sandbox: Sandbox) -> None:
    """Raises InvalidRequestError or UnsupportedError with the field's name."""
    what = f'container "{spec.metadata.name[:80]}"'
    _plain(f"{what}: metadata.name", spec.metadata.name)
    _labels(what, spec.labels, spec.annotations)
    if spec.log_path:
        _log_path(what, spec.log_path)
    for mount in spec.mounts:
        _mount(what, mount, privileged=spec.security.privileged)
        id_mappings.validate_mount(what, mount, sandbox.spec.security.namespaces)
    for item in spec.envs:
        if not item.key or "=" in item.key or "\0" in item.key or b"\0" in item.value:
            raise InvalidRequestError(f"{what}: environment variable {item.key[:80]!r} is invalid")
    _cdi_devices(what, spec.cdi_devices)
    if not -1000 <= spec.resources.oom_score_adj <= 1000:
        score = spec.resources.oom_score_adj
        raise InvalidRequestError(f"{what}: oom_score_adj {score} is not between -1000 and 1000")
    _security(what, spec.security, sandbox)


def _cdi_devices(what: str, names: tuple[str, ...]) -> None:
    if len(names) > _CDI_LIMIT:
        raise InvalidRequestError(f"{what}: more than {_CDI_LIMIT} CDI devices")
    for name in names:
        if not is_device_name(name):
            raise InvalidRequestError(
                f"{what}: CDI device {name[:200]!r} does not have the form vendor/class=name"
            )


def _security(what: str, security: ContainerSecurity, sandbox: Sandbox) -> None:
    if security.privileged and not sandbox.spec.security.privileged:
        raise InvalidRequestError(f"{what}: a privileged container needs a privileged sandbox")
    if security.run_as_user is not None and security.run_as_username:
        raise InvalidRequestError(f"{what}: run_as_user and run_as_username cannot both be set")
    _ids(what, security.run_as_user, security.run_as_group, *security.supplemental_groups)
    if security.namespaces.pid is NamespaceMode.TARGET and not security.namespaces.target_id:
        raise InvalidRequestError(f"{what}: PID mode TARGET needs target_id")
    id_mappings.validate_container(what, security.namespaces, sandbox.spec.security.namespaces)
    _cgroups(what, security, sandbox)
    _profiles(what, security.seccomp, security.apparmor)
    validate_selinux(what, security.selinux)
    # Raises for unknown names; which of them the container holds depends on the node's defaults.
    capability_sets(security, frozenset(NAMES), frozenset(NAMES))
    for path in (*security.masked_paths, *security.readonly_paths):
        _absolute(f"{what}: masked or readonly path", path)


def _cgroups(what: str, security: ContainerSecurity, sandbox: Sandbox) -> None:
    """What the CRI forbids of CgroupNamespace and CgroupMountMode."""
    mode, mount = security.namespaces.cgroup, security.cgroup_mount
    if mode not in (None, NamespaceMode.CONTAINER, NamespaceMode.NODE):
        raise InvalidRequestError(f"{what}: cgroupns_options.mode must be CONTAINER or NODE")
    if mode is NamespaceMode.NODE and sandbox.spec.security.namespaces.pod_userns is not None:
        raise InvalidRequestError(
            f"{what}: a container of a pod with a user namespace cannot use the node's cgroup "
            "namespace"
        )
    if security.privileged and mount is CgroupMount.READ_ONLY:
        raise InvalidRequestError(
            f"{what}: a privileged container's cgroup file system is always writable; "
            "leave cgroup_mount_mode out"
        )
    if not security.privileged and mode is NamespaceMode.NODE and mount is CgroupMount.READ_WRITE:
        raise InvalidRequestError(
            f"{what}: only a privileged container can write the node's cgroups; set "
            "cgroupns_options.mode to CONTAINER"
        )


def _ids(what: str, *numbers: int | None) -> None:
    for number in numbers:
        if number is not None:
            check_id(number, f"{what}: id")


def _profiles(what: str, seccomp: SecurityProfile | None, apparmor: SecurityProfile | None) -> None:
    """Localhost references: a file for seccomp, the name of a loaded profile for AppArmor."""
    if seccomp is not None and seccomp.type is ProfileType.LOCALHOST:
        _absolute(f"{what}: seccomp profile", seccomp.localhost_ref.removeprefix("localhost/"))
    if seccomp is not None and seccomp.base_ref:
        _absolute(f"{what}: seccomp base profile", seccomp.base_ref.removeprefix("localhost/"))
    if apparmor is not None and apparmor.type is ProfileType.LOCALHOST:
        name = apparmor.localhost_ref.removeprefix("localhost/")
        if not name or len(name) > _NAME_LIMIT or not name.isprintable():
            raise InvalidRequestError(
                f"{what}: AppArmor profile {name[:80]!r} is not a profile name"
            )


def _address(what: str, text: str) -> None:
    try:
        zoned = "%" in text  # ip_address accepts any text as a zone
        ip_address(text)
    except ValueError:
        zoned = True
    if zoned:
        raise InvalidRequestError(f"{what}: host_ip {text[:80]!r} is not an address")


def _namespaces(what: str, *modes: NamespaceMode) -> None:
    network, ipc, pid = modes
    # As in containerd and CRI-O: whatever is not the node's is the pod's.
    if network is NamespaceMode.TARGET:
        raise InvalidRequestError(f"{what}: network mode {network.name} is not POD or NODE")
    if ipc is NamespaceMode.TARGET:
        raise InvalidRequestError(f"{what}: ipc mode {ipc.name} is not POD or NODE")
    if pid is NamespaceMode.TARGET:
        raise InvalidRequestError(f"{what}: PID mode TARGET is for containers only")


def _pod_names(what: str, metadata: SandboxMetadata) -> None:
    _plain(f"{what}: metadata.name", metadata.name)
    _plain(f"{what}: metadata.namespace", metadata.namespace)
    if metadata.uid:
        _plain(f"{what}: metadata.uid", metadata.uid)
    for text in (metadata.name, metadata.namespace, metadata.uid):
        if ";" in text or "=" in text:  # they would cut the entries of CNI_ARGS
            raise InvalidRequestError(f'{what}: metadata: {text[:80]!r} contains ";" or "="')


def _hostname(what: str, spec: SandboxSpec) -> None:
    """Anything that the kernel accepts and that is one line of /etc/hostname."""
    name = spec.hostname
    if len(name.encode()) > _HOSTNAME_LIMIT:
        raise InvalidRequestError(
            f"{what}: hostname {name[:80]!r} is longer than {_HOSTNAME_LIMIT} bytes"
        )
    if not _printable(name):
        raise InvalidRequestError(f"{what}: hostname {name[:80]!r} has more than one line")
    hosts = spec.security.namespaces.network is NamespaceMode.NODE
    if hosts and name not in {"", os.uname().nodename}:
        raise InvalidRequestError(
            f"{what}: hostname {name!r}: a pod on the host's network uses the node's hostname; "
            "leave it empty"
        )


def _plain(what: str, text: str) -> None:
    if not text:
        raise InvalidRequestError(f"{what} is empty")
    if len(text) > _NAME_LIMIT or not _printable(text):
        raise InvalidRequestError(f"{what} {text[:80]!r} is too long or more than one line")


def _absolute(what: str, path: str) -> None:
    if not path.startswith("/") or ".." in PurePosixPath(path).parts or not _printable(path):
        raise InvalidRequestError(f"{what} {path[:200]!r} is not a plain absolute path")


def _log_path(what: str, path: str) -> None:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or not parts or not _printable(path):
        raise InvalidRequestError(
            f"{what}: log_path {path[:200]!r} is not a plain path below log_directory"
        )


def _mount(what: str, mount: Mount, *, privileged: bool) -> None:
    target = mount.container_path
    place = PurePosixPath(cleaned(target))
    if not target or "\0" in target or place == PurePosixPath("/"):
        raise InvalidRequestError(f"{what}: mount: container_path {target[:200]!r} is invalid")
    if place.is_relative_to("/proc"):
        below = str(place.relative_to("/proc"))
        if below not in _PROC_FILES and not (below == "." and privileged):
            raise InvalidRequestError(
                f"{what}: mount: container_path {target[:200]!r} would hide a part of /proc; "
                "mount it elsewhere, such as /host/proc"
            )
    check_image_mount(what, mount)
    if mount.image is None and (not mount.host_path.startswith("/") or "\0" in mount.host_path):
        raise InvalidRequestError(f"{what}: mount: host_path {mount.host_path[:200]!r} is invalid")
    if mount.recursive_read_only and not mount.readonly:
        raise InvalidRequestError(f"{what}: mount {target}: recursive_read_only requires readonly")
    if mount.recursive_read_only and mount.propagation is not MountPropagation.PRIVATE:
        raise InvalidRequestError(
            f"{what}: mount {target}: recursive_read_only requires private propagation"
        )
    unknown = set(mount.options) - {"noexec", "nodev", "nosuid"}
    if unknown:
        raise InvalidRequestError(f"{what}: mount {target}: unknown options {sorted(unknown)}")


def _printable(path: str) -> bool:
    return all(character not in path for character in "\0\n\r")


def _labels(what: str, *maps: dict[str, str]) -> None:
    texts: Iterable[str] = (text for labels in maps for pair in labels.items() for text in pair)
    if sum(len(text.encode()) for text in texts) > _LABELS_LIMIT:
        raise InvalidRequestError(f"{what}: labels and annotations exceed {_LABELS_LIMIT} bytes")
