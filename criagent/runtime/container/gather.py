# SPDX-License-Identifier: Apache-2.0
"""Gathers the inputs of `build_spec`: mounts, devices, namespaces and profiles of the node."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import structlog

from criagent.base.errors import InvalidRequestError, WrongStateError
from criagent.kernel import process
from criagent.model.common import NamespaceMode, ProcessRef
from criagent.model.container import Container, ContainerState, ContainerUser
from criagent.model.image import Image
from criagent.model.sandbox import Sandbox
from criagent.runtime.container.idmapped_mounts import HostMounts
from criagent.runtime.container.image_volumes import merged
from criagent.runtime.node.cgroup_names import CgroupDriver, container_cgroups_path
from criagent.runtime.node.defaults import ContainerDefaults
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.node.handlers import HandlerFacts
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.pod.namespaces import PodNamespaces, pod_hostname
from criagent.runtime.spec.build import container_args
from criagent.runtime.spec.cdi.resolve import CdiDevices
from criagent.runtime.spec.devices import resolve_devices, with_default_devices
from criagent.runtime.spec.inputs import (
    CdiEdits,
    ContainerNamespaces,
    OciObject,
    PodFiles,
    ResolvedDevice,
    ResolvedMount,
    SpecInputs,
    default_capabilities,
)
from criagent.runtime.spec.security.apparmor import AppArmor
from criagent.runtime.spec.security.capabilities import effective_capabilities
from criagent.runtime.spec.security.seccomp import seccomp_profile
from criagent.runtime.spec.security.seccomp_merge import Merged
from criagent.store.containers import ContainerStore

if TYPE_CHECKING:
    from criagent.config.defaults.base_spec import BaseSpec
    from criagent.runtime.node.hooks import HookFolders

_SHOWN = 20  # calls that a log line names

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_HOST_SHM = Path("/dev/shm")  # noqa: S108 - the node's own, for pods that share its IPC namespace


class ContainerNamespacePaths:
    """The namespaces that a container enters: those of its pod, and another one's PIDs."""

    def __init__(self, store: ContainerStore, namespaces: PodNamespaces) -> None:
        self._store = store
        self._namespaces = namespaces

    def of(self, container: Container, sandbox: Sandbox) -> ContainerNamespaces:
        """Raises InvalidRequestError for a PID target that cannot be, WrongStateError for one that
        has ended.
        """
        pins = self._namespaces.pins(sandbox)
        return ContainerNamespaces(
            network=pins.get("net"),
            ipc=pins.get("ipc"),
            uts=pins.get("uts"),
            pid=self._pid(container, sandbox),
            user=pins.get("user"),
        )

    def check_pid(self, container: Container, sandbox: Sandbox) -> None:
        """Raises WrongStateError when the process whose PID namespace it has entered is dead.

        The pid may have been reused by the time the runtime opened the namespace, so the process is
        checked before and after.
        """
        owner = self._pid_owner(container, sandbox)
        if owner is not None and not process.alive(owner):
            raise WrongStateError(
                f"the process whose PID namespace container {container.id} requests has ended"
            )

    def _pid(self, container: Container, sandbox: Sandbox) -> Path | Literal["new"] | None:
        if container.spec.security.namespaces.pid is NamespaceMode.NODE:
            return None
        owner = self._pid_owner(container, sandbox)
        if owner is None:
            return "new"
        self.check_pid(container, sandbox)
        return Path(f"/proc/{owner.pid}/ns/pid")

    def _pid_owner(self, container: Container, sandbox: Sandbox) -> ProcessRef | None:
        options = container.spec.security.namespaces
        if options.pid is NamespaceMode.TARGET:
            return self._target(container, options.target_id)
        return sandbox.holder if options.pid is NamespaceMode.POD else None

    def _target(self, container: Container, target_id: str) -> ProcessRef:
        target = self._store.get(target_id)
        if target is None or target.sandbox_id != container.sandbox_id:
            raise InvalidRequestError(
                f"PID target {target_id[:80]!r} is not a container of this pod"
            )
        if target.state is not ContainerState.RUNNING or target.init is None:
            raise InvalidRequestError(f"PID target {target.id} is not running")
        return target.init


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Devices:
    """`whole` says that the container has all devices of the node."""

    nodes: tuple[ResolvedDevice, ...]
    cdi: CdiEdits
    whole: bool


class DeviceGatherer:
    """Devices of the node and of CDI. With `owned` they belong to the container's user.

    Beside the requested ones are those of the node's `defaults`, and of a pod's annotation.
    """

    def __init__(self, *, cdi: CdiDevices, owned: bool, defaults: ContainerDefaults) -> None:
        self._cdi = cdi
        self._owned = owned
        self._defaults = defaults

    def gather(self, container: Container, sandbox: Sandbox, handler: HandlerFacts) -> _Devices:
        """Looks at files and devices: call it in a thread.

        Raises InvalidRequestError and UnsupportedError for what node or handler cannot give.
        """
        privileged = container.spec.security.privileged
        of_host = privileged and handler.host_devices
        has_userns = sandbox.spec.security.namespaces.pod_userns is not None
        return _Devices(
            nodes=resolve_devices(
                with_default_devices(container.spec, sandbox.spec, self._defaults, handler),
                host_devices=of_host,
                owned=self._owned,
                has_userns=has_userns,
            ),
            cdi=self._cdi.edits(container.spec.cdi_devices, handler.name),
            whole=(of_host or (privileged and handler.all_devices)) and not has_userns,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSources:
    """Where the profiles of security modules come from."""

    apparmor: AppArmor
    pulled: Callable[[str], bytes]  # SecurityProfiles.document


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What files and devices of the node gave."""

    devices: _Devices
    seccomp: Merged | None
    localtime: str
    hooks: tuple[tuple[str, OciObject], ...]
    base: BaseSpec | None  # of the handler


class SpecGatherer:
    """Looks things up; the specification itself is a pure function of the result."""

    def __init__(
        self,
        *,
        namespaces: ContainerNamespacePaths,
        mounts: HostMounts,
        devices: DeviceGatherer,
        profiles: ProfileSources,
        node: NodeFacts,
        driver: CgroupDriver,
        paths: RuntimePaths,
    ) -> None:
        self._namespaces = namespaces
        self._mounts = mounts
        self._devices = devices
        self._profiles = profiles
        self._node = node
        self._driver = driver
        self._paths = paths

    async def gather(
        self,
        container: Container,
        sandbox: Sandbox,
        *,
        image: Image,
        volumes: Mapping[int, ResolvedMount],
        found: Found,
    ) -> SpecInputs:
        """All inputs for `container`, whose user is resolved, with its mounted image volumes.

        Raises InvalidRequestError and UnsupportedError for what the node cannot provide,
        WrongStateError for a PID target that has ended.
        """
        security = container.spec.security
        of_host = await self._mounts.resolve(container, sandbox)
        devices = found.devices
        user = container.user or ContainerUser(uid=0, gid=0)
        return SpecInputs(
            container=container,
            sandbox=sandbox,
            image=image,
            user=dataclasses.replace(
                user, groups=tuple(dict.fromkeys((*user.groups, *devices.cdi.groups)))
            ),
            rootfs=self._paths.rootfs(container.id),
            namespaces=self._namespaces.of(container, sandbox),
            mounts=merged(container.spec.mounts, volumes, of_host),
            devices=devices.nodes,
            pod_files=self._pod_files(sandbox),
            cgroups_path=container_cgroups_path(
                self._driver, sandbox.spec.cgroup_parent, container.id
            ),
            hostname=pod_hostname(sandbox),
            seccomp=_applied(container, found.seccomp),
            apparmor=await self._profiles.apparmor.profile(
                security.apparmor, privileged=security.privileged
            ),
            node=self._node,
            all_devices=devices.whole,
            cdi=devices.cdi,
            localtime=found.localtime,
            hooks=found.hooks,
            base=found.base,
        )

    def look(
        self, container: Container, sandbox: Sandbox, *, image: Image, handler: HandlerFacts
    ) -> Found:
        """What files and devices of the node give: call it in a thread.

        Raises InvalidRequestError and UnsupportedError for what the node cannot provide,
        WrongStateError for an OCI hook that cannot be used.
        """
        security, defaults = container.spec.security, self._node.defaults
        default = default_capabilities(self._node, handler.base)
        if security.seccomp is None and defaults.seccomp is not None:
            security = dataclasses.replace(security, seccomp=defaults.seccomp)
        profile = seccomp_profile(
            security,
            machine=self._node.machine,
            capabilities=effective_capabilities(security, self._node.capabilities, default),
            pulled=self._profiles.pulled,
        )
        return Found(
            devices=self._devices.gather(container, sandbox, handler),
            seccomp=profile,
            localtime=defaults.localtime(),
            hooks=_hooks(defaults.hooks, container, sandbox, image),
            base=handler.base,
        )

    def _pod_files(self, sandbox: Sandbox) -> PodFiles:
        host_ipc = sandbox.spec.security.namespaces.ipc is NamespaceMode.NODE
        etc = self._paths.etc(sandbox.id)
        if not etc.exists():  # a pod of version 0.1
            etc = self._paths.sandbox(sandbox.id)
        return PodFiles(
            resolv_conf=etc / "resolv.conf",
            hostname=etc / "hostname",
            hosts=etc / "hosts",
            shm=_HOST_SHM if host_ipc else self._paths.shm(sandbox.id),
        )


def _hooks(
    folders: HookFolders | None, container: Container, sandbox: Sandbox, image: Image
) -> tuple[tuple[str, OciObject], ...]:
    """The operator's hooks. As with CRI-O, an annotation of the pod wins over the container's."""
    if folders is None:
        return ()
    from criagent.runtime.node.hooks import Subject  # few nodes have hooks

    spec = container.spec
    subject = Subject(
        command=container_args(spec, image.config)[0],
        annotations={**spec.annotations, **sandbox.spec.annotations},
        bind_mounts=bool(spec.mounts),
    )
    return folders.of(subject)


def _applied(container: Container, merged: Merged | None) -> OciObject | None:
    """The profile; what its base takes from one of a registry is logged (KEP-6061)."""
    if merged is None:
        return None
    asked = container.spec.security.seccomp
    if merged.constrained and asked is not None:
        log.info(
            "security_profile_constrained",
            profile=asked.oci_ref,
            base=asked.base_ref or "RuntimeDefault",
            calls=merged.constrained[:_SHOWN],
            count=len(merged.constrained),
        )
    return merged.profile
