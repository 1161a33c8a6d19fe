# SPDX-License-Identifier: Apache-2.0
"""The inputs of a container's OCI specification: plain facts, gathered before."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from criagent.config.defaults.values import capability
from criagent.model.container import Container, ContainerUser, Mount
from criagent.model.image import Image
from criagent.model.sandbox import Sandbox
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.spec.cdi import file as cdi_specs

if TYPE_CHECKING:
    from criagent.config.defaults.base_spec import BaseSpec

OciObject = dict[str, Any]  # a JSON object of the OCI runtime specification


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PodFiles:
    """Host paths of the files that a sandbox's containers share. `shm` is the node's /dev/shm if
    the pod uses the node's IPC namespace.
    """

    resolv_conf: Path
    hostname: Path
    hosts: Path
    shm: Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContainerNamespaces:
    """The namespaces that the container enters; None means the node's."""

    network: Path | None
    ipc: Path | None
    uts: Path | None
    pid: Path | Literal["new"] | None
    user: Path | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedMount:
    """A requested mount with a verified host side: `source` exists and contains no symlink."""

    request: Mount
    source: str
    propagation: Literal["rprivate", "rslave", "rshared"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedDevice:
    """A device node of the host at its path in the container."""

    path: str
    kind: Literal["c", "b"]
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    access: str  # of "rwm"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SelinuxLabels:
    """Labels of a container's processes and of everything that is mounted only for it."""

    process: str
    mount: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CdiNode:
    """A device node of a CDI device. Without an owner it belongs to the container's user."""

    path: str
    kind: Literal["c", "b", "p"]
    major: int
    minor: int
    mode: int | None
    uid: int | None
    gid: int | None
    access: str  # of "rwm", "" = none


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CdiEdits:
    """The changes by a container's CDI devices, in order; `groups` are added to the user's."""

    env: tuple[str, ...] = ()
    nodes: tuple[CdiNode, ...] = ()
    mounts: tuple[cdi_specs.Mount, ...] = ()
    hooks: tuple[cdi_specs.Hook, ...] = ()
    groups: tuple[int, ...] = ()
    net_devices: tuple[cdi_specs.NetDevice, ...] = ()
    intel_rdt: cdi_specs.IntelRdt | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SpecInputs:
    """Everything `build_spec` needs; nothing is looked up while it runs."""

    container: Container
    sandbox: Sandbox
    image: Image
    user: ContainerUser
    rootfs: Path
    namespaces: ContainerNamespaces
    mounts: tuple[ResolvedMount, ...]
    devices: tuple[ResolvedDevice, ...]  # requested devices, and all of the node when privileged
    pod_files: PodFiles
    cgroups_path: str
    hostname: str  # the value of $HOSTNAME
    seccomp: OciObject | None
    apparmor: str  # loaded profile name, "" = none
    node: NodeFacts
    all_devices: bool = False  # every device may be opened
    cdi: CdiEdits = CdiEdits()
    selinux: SelinuxLabels | None = None
    own_kernel: bool = False  # the OCI runtime gives it one, which has no namespaces of the node
    annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)  # for the OCI runtime
    localtime: str = ""  # file of the node's that is mounted at /etc/localtime, "" = none
    hooks: tuple[tuple[str, OciObject], ...] = ()  # of the operator's directories, by stage
    base: BaseSpec | None = None  # parts for every container of the handler

    @property
    def default_capabilities(self) -> frozenset[str]:
        """What the container holds before its pod adds and drops any."""
        return default_capabilities(self.node, self.base)


def default_capabilities(node: NodeFacts, base: BaseSpec | None) -> frozenset[str]:
    """Those of the handler's base specification, or of the node."""
    given = None if base is None else base.process.capabilities.bounding
    return node.defaults.capabilities if given is None else frozenset(map(capability, given))
