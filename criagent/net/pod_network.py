# SPDX-License-Identifier: Apache-2.0
"""The interface of a pod network, and the choice of one for a sandbox."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from criagent.base.errors import AgentError
from criagent.kernel.netlink import RouteSocket
from criagent.model.sandbox import Sandbox


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """The result of attaching: the pod's addresses, the one to report first."""

    addresses: tuple[str, ...]
    cni_result: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCondition:
    """NetworkReady as the CRI Status reports it."""

    ready: bool
    reason: str = ""
    message: str = ""


class PodNetwork(Protocol):
    """One way to connect pods. `detach` is idempotent and needs no living namespace; host ports are
    free afterwards, addresses at the latest some time after the namespace is gone.

    `reserve` takes the addresses beforehand, in the commit of a row that is written at the same
    time; `release` is its undo for a pod that was not attached. `inside` is a socket within the
    pod's namespace, if the caller has one.

    `reconcile` is called without `start` when no pod is on it and new pods use another network.
    """

    @property
    def backend(self) -> str: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def reserve(self, sandbox: Sandbox) -> None: ...
    async def release(self, sandbox: Sandbox) -> None: ...
    async def attach(
        self, sandbox: Sandbox, netns: Path, inside: RouteSocket | None = None
    ) -> Attachment: ...
    async def detach(self, sandbox: Sandbox, netns: Path | None) -> None: ...
    async def reconcile(self, live: Sequence[Sandbox]) -> None: ...
    async def set_pod_cidrs(self, cidrs: Sequence[str]) -> None: ...
    def condition(self) -> NetworkCondition: ...


class Networks:
    """The networks of this node. A row records the backend it was created with.

    `live` returns the sandboxes that may still be on one, `of_handler` has the backend of handlers
    with a network of their own.
    """

    def __init__(
        self,
        networks: Sequence[PodNetwork],
        default: str,
        live: Callable[[], Sequence[Sandbox]],
        of_handler: Mapping[str, str] | None = None,
    ) -> None:
        self._of_handler = of_handler or {}
        self._networks = {network.backend: network for network in networks}
        self._live = live
        self.default = self._networks[default]

    def backend(self, handler: str) -> str:
        """The backend of a new sandbox that asks for `handler`, "" for the default one."""
        return self._of_handler.get(handler, self.default.backend)

    def for_row(self, sandbox: Sandbox) -> PodNetwork:
        """The network of an existing sandbox, whatever the configuration is now."""
        try:
            return self._networks[sandbox.network_backend]
        except KeyError:
            kind, of_handler, _ = sandbox.network_backend.partition(":")
            if of_handler and kind in self._networks:  # the row has what it was attached with
                return self._networks[kind]
            raise AgentError(
                f'sandbox {sandbox.id} has the unknown network backend "{sandbox.network_backend}"'
            ) from None

    async def start(self) -> None:
        """Start the default network, and another one that older pods still use."""
        needed = {self.default.backend, *(sandbox.network_backend for sandbox in self._live())}
        for name, network in self._networks.items():
            if name in needed:
                await network.start()

    async def stop(self) -> None:
        """End background work; pods keep their network."""
        for network in self._networks.values():
            await network.stop()

    async def reconcile(self, live: Sequence[Sandbox]) -> None:
        """Remove what belongs to no sandbox in `live`, for every backend."""
        for name, network in self._networks.items():
            await network.reconcile(
                [sandbox for sandbox in live if sandbox.network_backend == name]
            )
