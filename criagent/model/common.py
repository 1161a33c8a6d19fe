# SPDX-License-Identifier: Apache-2.0
"""Values that sandboxes and containers share: namespaces, profiles, resources, processes."""

from __future__ import annotations

import dataclasses
import enum
import re

ID_PATTERN = re.compile(r"[0-9a-f]{64}")


class NamespaceMode(enum.IntEnum):
    POD = 0
    CONTAINER = 1
    NODE = 2
    TARGET = 3


class CgroupMount(enum.IntEnum):
    """How a container sees /sys/fs/cgroup; numbers of the CRI's CgroupMountMode."""

    DEFAULT = 0  # writable for privileged containers alone
    READ_ONLY = 1
    READ_WRITE = 2


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
    OCI = 3


class GroupsPolicy(enum.IntEnum):
    MERGE = 0
    STRICT = 1


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
    cgroup: NamespaceMode | None = None  # of a container; None = its own, privileged: the node's

    @property
    def pod_userns(self) -> UserNamespace | None:
        """The user namespace of the pod's own; None for the node's."""
        own = self.userns is not None and self.userns.mode is NamespaceMode.POD
        return self.userns if own else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SecurityProfile:
    """`oci_ref` names a profile from a registry, to be intersected with the file `base_ref`.

    Without `base_ref` it is intersected with the runtime default profile.
    """

    type: ProfileType
    localhost_ref: str = ""
    oci_ref: str = ""
    base_ref: str = ""


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
class ProcessRef:
    """A process that a recycled pid cannot impersonate (field 22 of /proc/PID/stat)."""

    pid: int
    start_ticks: int
