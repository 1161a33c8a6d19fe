"""Gathers the inputs of `build_spec`: mounts, devices, namespaces and profiles of the node."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Literal

from criagent.base.aio import run_in
from criagent.base.errors import InvalidRequestError, WrongStateError
from criagent.kernel import process
from criagent.model.common import NamespaceMode, ProcessRef
from criagent.model.container import Container, ContainerState, ContainerUser
from criagent.model.image import Image
from criagent.model.sandbox import Sandbox
from criagent.runtime.container.idmapped_mounts import attach_mapped, try_mappings
from criagent.runtime.container.image_volumes import merged
from criagent.runtime.node.cgroup_names import CgroupDriver, container_cgroups_path
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.pod.namespaces import PodNamespaces, pod_hostname
from criagent.runtime.spec.cdi.resolve import CdiDevices
from criagent.runtime.spec.devices import resolve_devices
from criagent.runtime.spec.host_paths import HostPaths
from criagent.runtime.spec.inputs import (
    CdiEdits,
    ContainerNamespaces,
    OciObject,
    PodFiles,
    ResolvedDevice,
    ResolvedMount,
    SpecInputs,
)
from criagent.runtime.spec.security.apparmor import AppArmor
from criagent.runtime.spec.security.capabilities import effective_capabilities
from criagent.runtime.spec.security.seccomp import seccomp_profile
from criagent.store.containers import ContainerStore

_HOST_SHM = Path("/dev/shm")  # noqa: S108 - the node's own, for pods that share its IPC namespace


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Resolved:
    """What a thread found on the host."""

    devices: tuple[ResolvedDevice, ...]
    seccomp: OciObject | None
    cdi: CdiEdits


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SpecGatherer:
    """Looks things up; the specification itself is a pure function of the result.

    Privileged containers of the handlers `no_host_devices` get no device of the node by default.
    """

    store: ContainerStore
    namespaces: PodNamespaces
    host_paths: HostPaths
    paths: RuntimePaths
    driver: CgroupDriver
    node: NodeFacts
    apparmor: AppArmor
    cdi: CdiDevices
    owned_devices: bool
    no_host_devices: frozenset[str]
    mapping_handlers: frozenset[str]  # handlers whose runtime maps the ids of a mount itself
    fs: Executor

    async def gather(
        self,
        container: Container,
        sandbox: Sandbox,
        image: Image,
        volumes: Mapping[int, ResolvedMount],
    ) -> SpecInputs:
        """All inputs for `container`, whose user is resolved, with its mounted image volumes.

        Raises InvalidRequestError and UnsupportedError for what the node cannot provide.
        """
        of_host = await self.host_paths.resolve(
            [m for m in container.spec.mounts if m.image is None]
        )
        if any(mount.request.uid_mappings for mount in of_host):
            of_host = await run_in(self.fs, self._mapped, container, sandbox, of_host)
        has_userns = sandbox.spec.security.namespaces.pod_userns is not None
        resolved = await run_in(self.fs, partial(self._resolve, container, has_userns=has_userns))
        user = container.user or ContainerUser(uid=0, gid=0)
        return SpecInputs(
            container=container,
            sandbox=sandbox,
            image=image,
            user=dataclasses.replace(
                user, groups=tuple(dict.fromkeys((*user.groups, *resolved.cdi.groups)))
            ),
            rootfs=self.paths.rootfs(container.id),
            namespaces=self._namespaces(container, sandbox),
            mounts=merged(container.spec.mounts, volumes, of_host),
            devices=resolved.devices,
            pod_files=self._pod_files(sandbox),
            cgroups_path=container_cgroups_path(
                self.driver, sandbox.spec.cgroup_parent, container.id
            ),
            hostname=pod_hostname(sandbox),
            seccomp=resolved.seccomp,
            apparmor=await self.apparmor.profile(
                container.spec.security.apparmor, privileged=container.spec.security.privileged
            ),
            node=self.node,
            all_devices=self._host_devices(container) and not has_userns,
            cdi=resolved.cdi,
        )

    def _host_devices(self, container: Container) -> bool:
        return container.spec.security.privileged and container.handler not in self.no_host_devices

    def _mapped(
        self, container: Container, sandbox: Sandbox, mounts: tuple[ResolvedMount, ...]
    ) -> tuple[ResolvedMount, ...]:
        userns = self.paths.userns(sandbox.id)
        if container.handler not in self.mapping_handlers:
            return attach_mapped(mounts, userns, self.paths.mapped_mounts(container.id))
        try_mappings(mounts, userns)
        return mounts

    def _resolve(self, container: Container, *, has_userns: bool) -> _Resolved:
        security = container.spec.security
        profile = seccomp_profile(
            security,
            machine=self.node.machine,
            capabilities=effective_capabilities(security, self.node.capabilities),
        )
        return _Resolved(
            devices=resolve_devices(
                container.spec,
                host_devices=self._host_devices(container),
                owned=self.owned_devices,
                has_userns=has_userns,
            ),
            seccomp=profile,
            cdi=self.cdi.edits(container.spec.cdi_devices, container.handler),
        )

    def _namespaces(self, container: Container, sandbox: Sandbox) -> ContainerNamespaces:
        pins = self.namespaces.pins(sandbox)
        return ContainerNamespaces(
            network=pins.get("net"),
            ipc=pins.get("ipc"),
            uts=pins.get("uts"),
            pid=self._pid_namespace(container, sandbox),
            user=pins.get("user"),
        )

    def check_pid_namespace(self, container: Container, sandbox: Sandbox) -> None:
        """Raises WrongStateError when the process whose PID namespace it has entered is dead.

        The pid may have been reused by the time the runtime opened the namespace, so the process is
        checked before and after.
        """
        owner = self._pid_owner(container, sandbox)
        if owner is not None and not process.alive(owner):
            raise WrongStateError(
                f"the process whose PID namespace container {container.id} requests has ended"
            )

    def _pid_namespace(
        self, container: Container, sandbox: Sandbox
    ) -> Path | Literal["new"] | None:
        if container.spec.security.namespaces.pid is NamespaceMode.NODE:
            return None
        owner = self._pid_owner(container, sandbox)
        if owner is None:
            return "new"
        self.check_pid_namespace(container, sandbox)
        return Path(f"/proc/{owner.pid}/ns/pid")

    def _pid_owner(self, container: Container, sandbox: Sandbox) -> ProcessRef | None:
        options = container.spec.security.namespaces
        if options.pid is NamespaceMode.TARGET:
            return self._target(container, options.target_id)
        return sandbox.holder if options.pid is NamespaceMode.POD else None

    def _target(self, container: Container, target_id: str) -> ProcessRef:
        target = self.store.get(target_id)
        if target is None or target.sandbox_id != container.sandbox_id:
            raise InvalidRequestError(
                f"PID target {target_id[:80]!r} is not a container of this pod"
            )
        if target.state is not ContainerState.RUNNING or target.init is None:
            raise InvalidRequestError(f"PID target {target.id} is not running")
        return target.init

    def _pod_files(self, sandbox: Sandbox) -> PodFiles:
        host_ipc = sandbox.spec.security.namespaces.ipc is NamespaceMode.NODE
        etc = self.paths.etc(sandbox.id)
        if not etc.exists():  # a pod of version 0.1
            etc = self.paths.sandbox(sandbox.id)
        return PodFiles(
            resolv_conf=etc / "resolv.conf",
            hostname=etc / "hostname",
            hosts=etc / "hosts",
            shm=_HOST_SHM if host_ipc else self.paths.shm(sandbox.id),
        )
