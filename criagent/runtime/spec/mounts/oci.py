# SPDX-License-Identifier: Apache-2.0
"""`mounts` of the OCI specification: kernel file systems, files of the pod, requested mounts."""

from __future__ import annotations

from collections.abc import Iterable

from criagent.base.errors import UnsupportedError
from criagent.kernel import cgroupfs
from criagent.model.common import CgroupMount, NamespaceMode, UserNamespace
from criagent.model.container import ContainerSecurity
from criagent.runtime.spec.id_mappings import oci_mappings
from criagent.runtime.spec.inputs import OciObject, ResolvedMount, SpecInputs
from criagent.runtime.spec.mounts.targets import cleaned

_SAFE = ["nosuid", "noexec", "nodev"]
_TTY = 5  # the group of terminals, as on every distribution


def oci_mounts(inputs: SpecInputs) -> list[OciObject]:
    """All mounts in the order in which the runtime mounts them.

    As in containerd: kernel file systems first, then the pod's files and requested mounts, the
    outer before the inner, so that a requested /etc does not hide /etc/resolv.conf. A requested
    mount replaces a default one at the same path; with a requested /dev, only /dev/shm is mounted
    below it by default.
    """
    requested = {cleaned(mount.request.container_path) for mount in inputs.mounts}

    def kept(mounts: Iterable[OciObject]) -> list[OciObject]:
        return [mount for mount in mounts if mount["destination"] not in requested]

    kernel = kept(_kernel(inputs))
    if "/dev" in requested:
        kernel = [mount for mount in kernel if not mount["destination"].startswith("/dev/")]
    binds = [*kept(_pod_files(inputs)), *(_bind(mount) for mount in inputs.mounts)]
    if inputs.base is not None:
        from criagent.runtime.spec.base import base_mounts  # few handlers have one

        taken = {str(mount["destination"]) for mount in (*kernel, *binds)}
        binds += base_mounts(inputs.base, taken)
    return [*kernel, *sorted(binds, key=lambda mount: str(mount["destination"]).count("/"))]


def rootfs_propagation(mounts: Iterable[ResolvedMount]) -> str:
    """`linux.rootfsPropagation`: as open as the most open mount requires."""
    wanted = {mount.propagation for mount in mounts}
    for propagation in ("rshared", "rslave"):
        if propagation in wanted:
            return propagation
    return ""


def _kernel(inputs: SpecInputs) -> list[OciObject]:
    security = inputs.container.spec.security
    access = "rw" if security.privileged else "ro"
    own_network = inputs.namespaces.network is not None
    userns = inputs.sandbox.spec.security.namespaces.pod_userns
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    if userns is None or userns.gids[0].length > _TTY:
        terminals.append(f"gid={_TTY}")
    return [
        _mount("/proc", "proc", "proc", _SAFE),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount("/dev/pts", "devpts", "devpts", terminals),
        _mount("/dev/mqueue", "mqueue", "mqueue", _SAFE),
        _sysfs(access, nodes=userns is not None and not own_network),
        _cgroups(inputs),
    ]


def own_cgroup_namespace(security: ContainerSecurity, userns: UserNamespace | None) -> bool:
    """Whether the container gets a cgroup namespace.

    By default all do but privileged ones, which see the node's tree (as with containerd): in a user
    namespace they could not mount that.
    """
    if (mode := security.namespaces.cgroup) is not None:
        return mode is NamespaceMode.CONTAINER
    return not security.privileged or userns is not None


def _sysfs(access: str, *, nodes: bool) -> OciObject:
    """A user namespace cannot mount a sysfs of a network that it does not own: it has the node's,
    never writable.
    """
    if nodes:
        return _mount("/sys", "bind", "/sys", ["rbind", "rprivate", *_SAFE, "rro", "ro"])
    return _mount("/sys", "sysfs", "sysfs", [*_SAFE, access])


def _cgroups(inputs: SpecInputs) -> OciObject:
    """The container's own cgroup, or the node's tree where it has no cgroup namespace.

    Raises UnsupportedError for a writable one without nsdelegate: it could raise its own limits.
    That tree is bound: a mount of it outside of all namespaces sets the options of the only super
    block there is, so the node would lose nsdelegate and memory_recursiveprot (cgroup v2,
    "Mounting").
    """
    security = inputs.container.spec.security
    own = own_cgroup_namespace(security, inputs.sandbox.spec.security.namespaces.pod_userns)
    writable = security.privileged or security.cgroup_mount is CgroupMount.READ_WRITE
    if writable and not security.privileged and not inputs.node.nsdelegate:
        raise UnsupportedError(
            "cgroup_mount_mode READ_WRITE needs nsdelegate on the node's /sys/fs/cgroup; run "
            "`mount -o remount,nsdelegate /sys/fs/cgroup`, then restart criagent"
        )
    access = "rw" if writable else "ro"
    if not own:
        tree = str(cgroupfs.ROOT)
        options = ["rbind", "rprivate", *_SAFE, "relatime", access]
        return _mount("/sys/fs/cgroup", "bind", tree, options)
    return _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*_SAFE, "relatime", access])


def _pod_files(inputs: SpecInputs) -> list[OciObject]:
    files = inputs.pod_files
    access = "ro" if inputs.container.spec.security.readonly_rootfs else "rw"
    shm = ["rbind", "rprivate", "rw", *_SAFE]
    etc = ["rbind", "rprivate", access, *_SAFE]
    zone = []
    if inputs.localtime:
        options = ["rbind", "rprivate", "ro", *_SAFE]
        zone = [_mount("/etc/localtime", "bind", inputs.localtime, options)]
    return [
        *zone,
        _mount("/dev/shm", "bind", str(files.shm), shm),  # noqa: S108 - the container's
        _mount("/etc/resolv.conf", "bind", str(files.resolv_conf), etc),
        _mount("/etc/hostname", "bind", str(files.hostname), etc),
        _mount("/etc/hosts", "bind", str(files.hosts), etc),
    ]


def _bind(mount: ResolvedMount) -> OciObject:
    request = mount.request
    options = ["rbind", mount.propagation]
    if request.recursive_read_only:
        options.append("rro")
    options.append("ro" if request.readonly else "rw")
    options += request.options
    entry = _mount(cleaned(request.container_path), "bind", mount.source, options)
    if request.uid_mappings:
        entry["uidMappings"] = oci_mappings(request.uid_mappings)
        entry["gidMappings"] = oci_mappings(request.gid_mappings)
    return entry


def _mount(destination: str, kind: str, source: str, options: list[str]) -> OciObject:
    return {"destination": destination, "type": kind, "source": source, "options": options}
