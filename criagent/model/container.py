# SPDX-License-Identifier: Apache-2.0
"""Containers: what a caller asks for, and what is known of each.

The state follows from the times that are stored; nothing stores a state.

    (unlisted) --ready_at--> CREATED --started_at--> RUNNING --finished_at--> EXITED --> gone
         |                      |                                               ^
         |                      +---- finished_at: it never started -----------+
         +---- an undo that failed ---------------------------------------------+
"""

from __future__ import annotations

import dataclasses
import enum
from typing import NewType

from criagent.model.common import (
    CgroupMount,
    GroupsPolicy,
    IdMapping,
    MountPropagation,
    NamespaceOptions,
    ProcessRef,
    Resources,
    SecurityProfile,
    SELinuxOptions,
)
from criagent.model.sandbox import SandboxId

ContainerId = NewType("ContainerId", str)


_POD_LABELS = tuple(f"io.kubernetes.pod.{key}" for key in ("namespace", "name", "uid"))


class ContainerState(enum.IntEnum):
    CREATED = 0
    RUNNING = 1
    EXITED = 2
    UNKNOWN = 3


class Reason(enum.StrEnum):
    """Why a container is EXITED, as ContainerStatus.reason shows it."""

    COMPLETED = "Completed"
    ERROR = "Error"
    OOM_KILLED = "OOMKilled"
    MONITOR_LOST = "ContainerMonitorLost"
    UNKNOWN = "Unknown"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeyValue:
    key: str
    value: bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageMount:
    """An image requested as a volume: reference or id, and what the user wrote."""

    image: str
    user_specified_image: str = ""
    handler: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageVolume:
    """An image that a container has as a volume; keeps its layers while the row lives."""

    mount: int  # place in the request's mounts
    image_id: str
    top: str  # chain ID of its topmost layer, "" = it has none


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    container_path: str
    host_path: str = ""
    readonly: bool = False
    selinux_relabel: bool = False
    propagation: MountPropagation = MountPropagation.PRIVATE
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    recursive_read_only: bool = False
    image: ImageMount | None = None
    image_sub_path: str = ""
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    container_path: str
    host_path: str
    permissions: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSecurity:
    add_capabilities: tuple[str, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    add_ambient_capabilities: tuple[str, ...] = ()
    privileged: bool = False
    namespaces: NamespaceOptions = NamespaceOptions()
    selinux: SELinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_username: str = ""
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: GroupsPolicy = GroupsPolicy.MERGE
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None
    cgroup_mount: CgroupMount = CgroupMount.DEFAULT


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContainerMetadata:
    name: str
    attempt: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """What CreateContainer asked for, validated."""

    metadata: ContainerMetadata
    image: str  # as sent: id or reference
    user_specified_image: str = ""
    image_annotations: dict[str, str] = dataclasses.field(default_factory=dict)
    image_handler: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[KeyValue, ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    annotations: dict[str, str] = dataclasses.field(default_factory=dict)
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    resources: Resources = Resources()
    security: ContainerSecurity = ContainerSecurity()
    stop_signal: int = 0  # CRI Signal enum value, 0 = image's or SIGTERM


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContainerUser:
    """Effective ids of the main process, resolved inside the image."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container row. Paths, cgroup and monitor sockets are named by `id` alone."""

    id: ContainerId
    sandbox_id: SandboxId
    spec: ContainerSpec
    created_at_ns: int
    boot_id: str
    handler: str  # resolved name of the OCI runtime handler
    image_id: str = ""
    image_ref: str = ""  # repo digest (or id) reported as ContainerStatus.image_ref
    image_name: str = ""  # as its users know it, reported as ContainerStatus.image
    image_volumes: tuple[ImageVolume, ...] = ()
    user: ContainerUser | None = None
    log_path: str = ""  # absolute, "" = none
    stop_signal: str = "SIGTERM"  # effective, kernel spelling
    cgroup: str = ""  # path below /sys/fs/cgroup where init lives
    resources: Resources = Resources()  # in force
    monitor: ProcessRef | None = None  # conmon
    init: ProcessRef | None = None
    ready_at_ns: int = 0  # every step of CreateContainer is done
    started_at_ns: int = 0
    finished_at_ns: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    # A stop is in progress; SIGKILL at this time of CLOCK_BOOTTIME, which cannot be set.
    stop_deadline_boot_ns: int = 0
    oom_kills_seen: int = 0
    # Its processes come from a checkpoint: StartContainer restores them, and only then it has a
    # monitor and an init (RestorePod).
    restored: bool = False

    @property
    def facts(self) -> dict[str, str]:
        """What log lines call the container; its pod by the labels that every kubelet sets."""
        namespace, name, uid = (self.spec.labels.get(label, "") for label in _POD_LABELS)
        of_pod = {"pod": f"{namespace}/{name}", "pod_uid": uid} if name else {}
        return {
            **of_pod,
            "sandbox_id": self.sandbox_id,
            "container": self.spec.metadata.name,
            "container_id": self.id,
            "image": self.image_name or self.spec.image,
        }

    @property
    def visible(self) -> bool:
        """Listed: created once, or left by a failed undo for the kubelet to remove."""
        return bool(self.ready_at_ns or self.finished_at_ns)

    @property
    def state(self) -> ContainerState:
        """CREATED, RUNNING and EXITED follow from the times alone."""
        if self.finished_at_ns:
            return ContainerState.EXITED
        if self.started_at_ns:
            return ContainerState.RUNNING
        return ContainerState.CREATED


def container_key(sandbox_id: str, metadata: ContainerMetadata) -> str:
    """The unique name of a container within its sandbox."""
    return f"{metadata.name}_{sandbox_id}_{metadata.attempt}"
