"""Domain values: immutable facts about sandboxes, containers and images.

Everything here is a frozen dataclass that msgspec can encode, because the store keeps these values
as they are. Facts are stored (times, process, exit code); states are derived from them. Times are
integer nanoseconds since the epoch where CRI counts so (suffix `_ns`), 0 = has not happened.
Numeric enum values equal those of CRI v1.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from typing import NewType

SandboxId = NewType("SandboxId", str)
ContainerId = NewType("ContainerId", str)

_POD_LABELS = tuple(f"io.kubernetes.pod.{key}" for key in ("namespace", "name", "uid"))
ID_PATTERN = re.compile(r"[0-9a-f]{64}")


class NamespaceMode(enum.IntEnum):
    POD = 0
    CONTAINER = 1
    NODE = 2
    TARGET = 3


class Protocol(enum.IntEnum):
    TCP = 0
    UDP = 1
    SCTP = 2


class MountPropagation(enum.IntEnum):
    PRIVATE = 0
    HOST_TO_CONTAINER = 1
    BIDIRECTIONAL = 2


class ProfileType(enum.IntEnum):
    RUNTIME_DEFAULT = 0
    UNCONFINED = 1
    LOCALHOST = 2


class GroupsPolicy(enum.IntEnum):
    MERGE = 0
    STRICT = 1


class SandboxState(enum.IntEnum):
    READY = 0
    NOTREADY = 1


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
class IdMapping:
    host_id: int
    container_id: int
    length: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UserNamespace:
    mode: NamespaceMode = NamespaceMode.NODE
    uids: tuple[IdMapping, ...] = ()
    gids: tuple[IdMapping, ...] = ()

    @property
    def root_uid(self) -> int:
        """What the pod's uid 0 is on the node; for mode POD."""
        return self.uids[0].host_id

    @property
    def root_gid(self) -> int:
        """What the pod's gid 0 is on the node; for mode POD."""
        return self.gids[0].host_id


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceOptions:
    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.POD
    ipc: NamespaceMode = NamespaceMode.POD
    target_id: str = ""
    userns: UserNamespace | None = None

    @property
    def pod_userns(self) -> UserNamespace | None:
        """The user namespace of the pod's own; None for the node's."""
        own = self.userns is not None and self.userns.mode is NamespaceMode.POD
        return self.userns if own else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SecurityProfile:
    type: ProfileType
    localhost_ref: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SELinuxOptions:
    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HugepageLimit:
    page_size: str
    limit: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """LinuxContainerResources; 0 and "" mean not given, as in CRI."""

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    memory_limit_in_bytes: int = 0
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    unified: dict[str, str] = dataclasses.field(default_factory=dict)
    memory_swap_limit_in_bytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DnsConfig:
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PortMapping:
    protocol: Protocol
    container_port: int
    host_port: int
    host_ip: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSecurity:
    namespaces: NamespaceOptions = NamespaceOptions()
    selinux: SELinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: GroupsPolicy = GroupsPolicy.MERGE
    privileged: bool = False
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxMetadata:
    name: str
    uid: str
    namespace: str
    attempt: int = 0

    @property
    def key(self) -> str:
        """The unique name: no two sandboxes of one attempt of one pod exist."""
        return f"{self.name}_{self.namespace}_{self.uid}_{self.attempt}"

    @property
    def facts(self) -> dict[str, str]:
        """What log lines call the pod."""
        return {"pod": f"{self.namespace}/{self.name}", "pod_uid": self.uid}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What RunPodSandbox asked for, validated."""

    metadata: SandboxMetadata
    hostname: str = ""
    log_directory: str = ""
    dns: DnsConfig | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    annotations: dict[str, str] = dataclasses.field(default_factory=dict)
    cgroup_parent: str = ""
    sysctls: dict[str, str] = dataclasses.field(default_factory=dict)
    security: SandboxSecurity = SandboxSecurity()
    overhead: Resources | None = None
    resources: Resources | None = None
    runtime_handler: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRef:
    """A process that a recycled pid cannot impersonate (field 22 of /proc/PID/stat)."""

    pid: int
    start_ticks: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A sandbox row. Its kernel objects are named by `id` alone."""

    id: SandboxId
    spec: SandboxSpec
    created_at_ns: int
    boot_id: str
    selinux_level: str = ""  # of its containers, "" = no labels
    network_backend: str = ""  # "builtin", "cni" or "" for the host's network
    addresses: tuple[str, ...] = ()
    cni_result: bytes = b""
    holder: ProcessRef | None = None  # PID 1 of a shared PID namespace
    ready_at_ns: int = 0  # every step of RunPodSandbox is done
    stopped_at_ns: int = 0  # StopPodSandbox began, or the sandbox is lost
    released_at_ns: int = 0  # network, namespaces and holder are gone

    @property
    def visible(self) -> bool:
        """Listed: finished once, or left by a failed undo for the kubelet to remove."""
        return bool(self.ready_at_ns or self.stopped_at_ns)

    @property
    def state(self) -> SandboxState:
        """READY between the last step of Run and the first of Stop."""
        ready = self.ready_at_ns and not self.stopped_at_ns
        return SandboxState.READY if ready else SandboxState.NOTREADY


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeyValue:
    key: str
    value: bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageMount:
    """An image asked for as a volume: reference or id, and what the user wrote."""

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
    # A stop is in progress; SIGKILL at this time of CLOCK_BOOTTIME, which nobody can set.
    stop_deadline_boot_ns: int = 0
    oom_kills_seen: int = 0

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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """The parts of an OCI image configuration that containers are made of."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    labels: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of an image: the blob as transferred and its position in the chain."""

    digest: str
    size: int
    media_type: str
    diff_id: str
    chain_id: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image as the store knows it. `id` is the digest of its configuration."""

    id: str
    manifest_digest: str
    config: ImageConfig
    layers: tuple[Layer, ...]
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    size: int = 0  # bytes of configuration and compressed layers
    platform: str = ""
    created: str = ""  # RFC 3339 text of the configuration
    pulled_at_ns: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A directory `snapshots/<number>`: a committed layer, or a container's writable layer.

    `key` is the chain ID of a committed layer, the container id of a writable one. A damaged layer
    that was replaced while containers use it goes on as `damaged_key`.
    """

    number: int
    key: str
    committed: bool
    parent: str = ""  # chain ID below; "" for the first layer
    diff_id: str = ""
    used_bytes: int = 0
    inodes: int = 0
    created_at_ns: int = 0
    # Names in a committed layer's tree and bytes of its regular files, for fsck. Layers that 0.1
    # unpacked were not counted: both are 0.
    entries: int = 0
    content_bytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    digest: str
    size: int
    media_type: str = ""
