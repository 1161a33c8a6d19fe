# SPDX-License-Identifier: Apache-2.0
"""Sandboxes: what a caller asks for, and what is known of each.

The state follows from the times that are stored; nothing stores a state.

    (unlisted) --ready_at--> READY --stopped_at--> NOTREADY --row deleted--> gone
         |                                            ^
         +---- an undo that failed -------------------+
"""

from __future__ import annotations

import dataclasses
import enum
from typing import NewType

from criagent.model.common import (
    GroupsPolicy,
    NamespaceOptions,
    ProcessRef,
    Protocol,
    Resources,
    SecurityProfile,
    SELinuxOptions,
)

SandboxId = NewType("SandboxId", str)


class SandboxState(enum.IntEnum):
    READY = 0
    NOTREADY = 1


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
class Sandbox:
    """A sandbox row. Its kernel objects are named by `id` alone."""

    id: SandboxId
    spec: SandboxSpec
    created_at_ns: int
    boot_id: str
    selinux_level: str = ""  # of its containers, "" = no labels
    network_backend: str = ""  # "builtin", "cni", "cni:HANDLER", or "" for the host's network
    addresses: tuple[str, ...] = ()
    cni_result: bytes = b""
    holder: ProcessRef | None = None  # PID 1 of a shared PID namespace
    ready_at_ns: int = 0  # every step of RunPodSandbox is done
    stopped_at_ns: int = 0  # StopPodSandbox began, or the sandbox is lost
    released_at_ns: int = 0  # network, namespaces and holder are gone
    # What UpdatePodSandboxResources named last; None while it was not called.
    new_overhead: Resources | None = None
    new_resources: Resources | None = None

    @property
    def overhead(self) -> Resources | None:
        """The pod's overhead as the kubelet named it last."""
        return self.spec.overhead if self.new_overhead is None else self.new_overhead

    @property
    def resources(self) -> Resources | None:
        """The sum of the resources of its containers as the kubelet named it last."""
        return self.spec.resources if self.new_resources is None else self.new_resources

    @property
    def visible(self) -> bool:
        """Listed: finished once, or left by a failed undo for the kubelet to remove."""
        return bool(self.ready_at_ns or self.stopped_at_ns)

    @property
    def state(self) -> SandboxState:
        """READY between the last step of Run and the first of Stop."""
        ready = self.ready_at_ns and not self.stopped_at_ns
        return SandboxState.READY if ready else SandboxState.NOTREADY
