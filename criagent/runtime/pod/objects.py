# SPDX-License-Identifier: Apache-2.0
"""The kernel objects of a sandbox, made one by one: namespaces, network, files, PID holder."""

from __future__ import annotations

import dataclasses

from criagent.base.os_errors import about
from criagent.kernel.netlink import RouteSocket
from criagent.model.common import NamespaceMode
from criagent.model.sandbox import Sandbox, SandboxSpec
from criagent.net.pod_network import Networks
from criagent.runtime.pod.files import PodFileWriter
from criagent.runtime.pod.namespaces import PodNamespaces
from criagent.runtime.pod.pid_holder import SandboxHolder


class SandboxObjects:
    """Makes and removes them. Every removal is idempotent and finds its object from the id."""

    def __init__(
        self,
        *,
        networks: Networks,
        namespaces: PodNamespaces,
        files: PodFileWriter,
        holder: SandboxHolder,
    ) -> None:
        self._networks = networks
        self._namespaces = namespaces
        self._files = files
        self._holder = holder
        self._inside: dict[str, RouteSocket] = {}  # of pods that are about to be attached

    def backend(self, spec: SandboxSpec) -> str:
        """The network that a new sandbox gets; "" for the node's own."""
        host = spec.security.namespaces.network is NamespaceMode.NODE
        return "" if host else self._networks.backend(spec.runtime_handler)

    async def make_namespaces(self, sandbox: Sandbox) -> None:
        """The sandbox's directory with its files, and its namespaces.

        Raises InvalidRequestError for a bad DNS configuration, and what `PodNamespaces.create`
        raises.
        """
        inside = await self._namespaces.create(sandbox, await self._files.writer(sandbox))
        if inside is not None:
            self._inside[sandbox.id] = inside

    async def remove_namespaces(self, sandbox_id: str) -> None:
        """The pins go, and with them namespaces that nobody uses."""
        if (inside := self._inside.pop(sandbox_id, None)) is not None:
            inside.close()
        await self._namespaces.remove(sandbox_id)

    async def reserve(self, sandbox: Sandbox) -> None:
        """Addresses for a sandbox that is about to be attached; `release` is the undo."""
        await self._networks.for_row(sandbox).reserve(sandbox)

    async def release(self, sandbox: Sandbox) -> None:
        """Its addresses are free again, unless it was attached."""
        await self._networks.for_row(sandbox).release(sandbox)

    async def attach(self, sandbox: Sandbox) -> Sandbox:
        """Connect the sandbox to its network; the row has its addresses."""
        netns = self._namespaces.netns(sandbox)
        inside = self._inside.pop(sandbox.id, None)
        try:
            network = self._networks.for_row(sandbox)
            attachment = await network.attach(sandbox, netns, inside)
        finally:
            if inside is not None:  # it keeps the namespace alive
                inside.close()
        return dataclasses.replace(
            sandbox, addresses=attachment.addresses, cni_result=attachment.cni_result
        )

    async def detach(self, sandbox: Sandbox) -> None:
        """Disconnect the sandbox from its network; its addresses are free once its link is gone."""
        if sandbox.network_backend:
            netns = self._namespaces.netns(sandbox)
            network = self._networks.for_row(sandbox)
            await network.detach(sandbox, netns if netns.exists() else None)

    async def remove_files(self, sandbox_id: str) -> None:
        """The sandbox's directory goes with everything that is mounted in it."""
        await self._files.remove(sandbox_id)

    async def start_holder(self, sandbox: Sandbox) -> Sandbox:
        """Start the process that holds a shared PID namespace; the row has it."""
        with about(self._files.directory(sandbox.id)):
            return dataclasses.replace(sandbox, holder=await self._holder.start(sandbox))

    async def remove_holder(self, sandbox: Sandbox) -> None:
        """Kill it and everything in its PID namespace."""
        await self._holder.remove(sandbox)

    def intact(self, sandbox: Sandbox) -> bool:
        """Whether the pins and the holder of a sandbox from before a restart are still there;
        synchronous.
        """
        return self._namespaces.intact(sandbox) and self._holder.alive(sandbox)
