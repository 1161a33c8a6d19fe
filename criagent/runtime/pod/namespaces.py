# SPDX-License-Identifier: Apache-2.0
"""The pinned net, ipc, uts and user namespaces of a sandbox.

Each is a bind mount `sandboxes/<id>/ns/<kind>` below the run directory, so it lives without any
process. Kinds that the pod shares with the host have no pin. A user namespace owns the others.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from criagent.base import faults
from criagent.base.aio import run_in
from criagent.base.errors import InvalidRequestError
from criagent.config.defaults.values import normalised, sysctl_namespace
from criagent.kernel.namespaces import (
    in_thread,
    is_pinned,
    pin_namespaces,
    pin_namespaces_of,
    unpin,
)
from criagent.kernel.netlink import RouteSocket
from criagent.model.common import NamespaceMode, UserNamespace
from criagent.model.sandbox import Sandbox
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.pod.user_namespaces import namespace_maker
from criagent.runtime.spec.sysctls import builtin_network_sysctls, with_node_groups

_SYSCTLS = "/proc/sys/"
# Defaults of pods that do not request other values.
_PORTS = ("net.ipv4.ip_unprivileged_port_start", "0")
_ICMP = ("net.ipv4.ping_group_range", "0 2147483647")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PodNamespaces:
    """Creates, finds and removes the pins."""

    paths: RuntimePaths
    fs: Executor
    unprivileged_ports: bool
    unprivileged_icmp: bool
    defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)  # sysctls by their names

    async def create(self, sandbox: Sandbox, first: Callable[[], None]) -> RouteSocket | None:
        """Create and pin the namespaces that belong to `sandbox`, with hostname and sysctls.

        `first` is called before, in the same thread, when the sandbox's directory is there. For a
        pod on the built-in network returns a socket within it, except with a user namespace.
        Raises what `first` raises, InvalidRequestError for a sysctl that this kernel lacks or
        rejects.
        """
        targets = self.pins(sandbox)
        directory = self.paths.netns(sandbox.id).parent
        sysctls = builtin_network_sysctls() if sandbox.network_backend == "builtin" else {}
        for name, value in self.defaults.items():
            if sysctl_namespace(name) in targets:
                sysctls[name] = value
        sysctls |= {normalised(name): value for name, value in sandbox.spec.sysctls.items()}
        if self.unprivileged_ports and "net" in targets:
            sysctls.setdefault(*_PORTS)
        if self.unprivileged_icmp and "net" in targets:
            sysctls.setdefault(*_ICMP)

        def make() -> RouteSocket | None:
            self.paths.make_sandbox(sandbox.id, None)
            first()
            directory.mkdir(exist_ok=True, mode=0o711)
            if targets:
                hostname = pod_hostname(sandbox) if "uts" in targets else None
                pin_namespaces(targets, sysctls=sysctls, hostname=hostname)
            return RouteSocket() if sandbox.network_backend == "builtin" else None

        try:
            if (userns := sandbox.spec.security.namespaces.pod_userns) is None:
                return await run_in(self.fs, in_thread, make)
            await self._create_mapped(sandbox, userns, sysctls, first)
        except OSError as exc:
            if not str(exc.filename).startswith(_SYSCTLS):
                raise
            name = str(exc.filename).removeprefix(_SYSCTLS).replace("/", ".")
            raise InvalidRequestError(f"sysctl {name}: {exc.strerror}") from exc
        return None

    async def _create_mapped(
        self,
        sandbox: Sandbox,
        userns: UserNamespace,
        sysctls: Mapping[str, str],
        first: Callable[[], None],
    ) -> None:
        targets = self.pins(sandbox)
        sysctls = with_node_groups(sysctls, userns.gids[0])

        def pin(pid: int) -> None:
            self.paths.make_sandbox(sandbox.id, userns.root_gid)
            first()
            targets["user"].parent.mkdir(exist_ok=True, mode=0o711)
            pin_namespaces_of(
                pid,
                targets,
                root=(userns.root_uid, userns.root_gid),
                sysctls=sysctls,
                hostname=pod_hostname(sandbox),
            )

        async with namespace_maker(userns) as pid:
            faults.reach("sandbox-run:user-namespace")
            await run_in(self.fs, in_thread, partial(pin, pid))

    def pins(self, sandbox: Sandbox) -> dict[str, Path]:
        """As `namespace_pins`."""
        return namespace_pins(self.paths, sandbox)

    def netns(self, sandbox: Sandbox) -> Path:
        """Where the network namespace of `sandbox` is pinned."""
        return self.paths.netns(sandbox.id)

    def intact(self, sandbox: Sandbox) -> bool:
        """Whether every pin of `sandbox` is still a mounted namespace; synchronous."""
        return all(map(is_pinned, self.pins(sandbox).values()))

    async def remove(self, sandbox_id: str) -> None:
        """Unpin all of them; the kernel drops a namespace with its last user."""
        pins = (
            self.paths.netns(sandbox_id),
            self.paths.utsns(sandbox_id),
            self.paths.ipcns(sandbox_id),
            self.paths.userns(sandbox_id),
        )

        def undo() -> None:
            for pin in pins:
                unpin(pin)

        await run_in(self.fs, undo)


def namespace_pins(paths: RuntimePaths, sandbox: Sandbox) -> dict[str, Path]:
    """The pin of each namespace of the pod's own, by kind ("net", "ipc", "uts", "user")."""
    options = sandbox.spec.security.namespaces
    pins: dict[str, Path] = {}
    if options.network is not NamespaceMode.NODE:
        pins["net"] = paths.netns(sandbox.id)
        pins["uts"] = paths.utsns(sandbox.id)
    if options.ipc is not NamespaceMode.NODE:
        pins["ipc"] = paths.ipcns(sandbox.id)
    if options.pod_userns is not None:
        pins["user"] = paths.userns(sandbox.id)
    return pins


def pod_hostname(sandbox: Sandbox) -> str:
    """The hostname that the pod sees: its own, or the node's."""
    return sandbox.spec.hostname or os.uname().nodename
