"""Requests checked before anything is made: what can never work is refused with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from criagent.errors import InvalidRequestError, UnsupportedError
from criagent.model import ContainerSpec, Mount, NamespaceMode, Sandbox, SandboxSpec
from criagent.net.resolv import resolv_conf
from criagent.runtime.cgroups import validate_cgroup_parent
from criagent.runtime.sysctls import validate_sysctls
from criagent.runtime.users import check_id

_HOSTNAME = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
_NAME_LIMIT = 1024
_LABELS_LIMIT = 1 << 20  # bytes; they are in every list answer


def validate_sandbox_spec(spec: SandboxSpec) -> None:
    """Raises InvalidRequestError or UnsupportedError with the field's name."""
    what = f'sandbox "{spec.metadata.name[:80]}"'
    for field, text in (
        ("name", spec.metadata.name),
        ("uid", spec.metadata.uid),
        ("namespace", spec.metadata.namespace),
    ):
        _plain(f"{what}: metadata.{field}", text)
    if spec.hostname and (len(spec.hostname) > 64 or not _HOSTNAME.fullmatch(spec.hostname)):
        raise InvalidRequestError(
            f"{what}: hostname {spec.hostname[:80]!r} is no name of at most 64 letters, digits "
            "and dashes"
        )
    if spec.log_directory:
        _absolute(f"{what}: log_directory", spec.log_directory)
    _labels(what, spec.labels, spec.annotations)
    namespaces = spec.security.namespaces
    _namespaces(what, namespaces.network, namespaces.ipc, namespaces.pid)
    if namespaces.userns is not None and namespaces.userns.mode is NamespaceMode.POD:
        raise UnsupportedError(f"{what}: user namespaces are not supported by this release")
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
                raise InvalidRequestError(f"{what}: port {port} is not within 0..65535")


def validate_container_spec(spec: ContainerSpec, box: Sandbox) -> None:
    """Raises InvalidRequestError or UnsupportedError with the field's name."""
    what = f'container "{spec.metadata.name[:80]}"'
    _plain(f"{what}: metadata.name", spec.metadata.name)
    _labels(what, spec.labels, spec.annotations)
    if spec.log_path:
        _log_path(what, spec.log_path)
    for mount in spec.mounts:
        _mount(what, mount)
    for item in spec.envs:
        if not item.key or "=" in item.key or "\0" in item.key or b"\0" in item.value:
            raise InvalidRequestError(f"{what}: environment variable {item.key[:80]!r} is invalid")
    if spec.cdi_devices:
        raise UnsupportedError(f"{what}: CDI devices are not supported by this release")
    security = spec.security
    if security.privileged and not box.spec.security.privileged:
        raise InvalidRequestError(f"{what}: a privileged container needs a privileged sandbox")
    if security.run_as_user is not None and security.run_as_username:
        raise InvalidRequestError(f"{what}: run_as_user and run_as_username exclude one another")
    for number in (security.run_as_user, security.run_as_group, *security.supplemental_groups):
        if number is not None:
            check_id(number, f"{what}: id")
    if security.namespaces.pid is NamespaceMode.TARGET and not security.namespaces.target_id:
        raise InvalidRequestError(f"{what}: PID mode TARGET needs target_id")
    userns = security.namespaces.userns
    if userns is not None and userns.mode is NamespaceMode.POD:
        raise UnsupportedError(f"{what}: user namespaces are not supported by this release")


def _namespaces(what: str, *modes: NamespaceMode) -> None:
    network, ipc, pid = modes
    if network not in {NamespaceMode.POD, NamespaceMode.NODE}:
        raise InvalidRequestError(f"{what}: network mode {network.name} is not POD or NODE")
    if ipc not in {NamespaceMode.POD, NamespaceMode.NODE}:
        raise InvalidRequestError(f"{what}: ipc mode {ipc.name} is not POD or NODE")
    if pid is NamespaceMode.TARGET:
        raise InvalidRequestError(f"{what}: PID mode TARGET is for containers only")


def _plain(what: str, text: str) -> None:
    if not text:
        raise InvalidRequestError(f"{what} is empty")
    if len(text) > _NAME_LIMIT or any(character in text for character in "\0\n\r"):
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


def _mount(what: str, mount: Mount) -> None:
    target = mount.container_path
    if not target or "\0" in target or PurePosixPath("/", target) == PurePosixPath("/"):
        raise InvalidRequestError(f"{what}: mount: container_path {target[:200]!r} is invalid")
    if ".." in PurePosixPath(target).parts:
        raise InvalidRequestError(f'{what}: mount: container_path {target[:200]!r} has ".."')
    if mount.image is not None:
        raise UnsupportedError(f"{what}: image volumes are not supported by this release")
    if not mount.host_path.startswith("/") or "\0" in mount.host_path:
        raise InvalidRequestError(f"{what}: mount: host_path {mount.host_path[:200]!r} is invalid")
    if mount.uid_mappings or mount.gid_mappings:
        raise UnsupportedError(f"{what}: mount {target}: id mappings need a user namespace")
    unknown = set(mount.options) - {"noexec", "nodev", "nosuid"}
    if unknown:
        raise InvalidRequestError(f"{what}: mount {target}: unknown options {sorted(unknown)}")


def _printable(path: str) -> bool:
    return all(character not in path for character in "\0\n\r")


def _labels(what: str, *maps: dict[str, str]) -> None:
    pairs: Iterable[tuple[str, str]] = (pair for labels in maps for pair in labels.items())
    if sum(len(key) + len(value) for key, value in pairs) > _LABELS_LIMIT:
        raise InvalidRequestError(f"{what}: labels and annotations exceed {_LABELS_LIMIT} bytes")
