# SPDX-License-Identifier: Apache-2.0
"""The life of one plugin's connection: registration, configuration, synchronization, calls."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence

import structlog
from google.protobuf.message import DecodeError

from criagent._proto import nri_pb2
from criagent.base.aio import alongside
from criagent.nri.effects import Effects
from criagent.nri.plugin import Identity, Limits, Plugin, configured
from criagent.nri.registry import Registry
from criagent.nri.tally import Tally
from criagent.nri.wire.link import Link, LostError, Peer, RefusedError
from criagent.nri.wire.ttrpc import MAX_BODY, Code, OversizedError
from criagent.version import VERSION

NRI_VERSION = "v0.12.5"  # whose protocol this is; plugins read it

# A request has its messages and an envelope; each message some bytes around it.
_PIECE = MAX_BODY - (64 << 10)
_AROUND = 16

Known = Callable[[], Awaitable[tuple[list[nri_pb2.PodSandbox], list[nri_pb2.Container]]]]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What every session shares."""

    registry: Registry
    known: Known
    effects: Effects
    limits: Limits
    tally: Tally


class Session:
    """One connection. A program that the agent has started has an `identity` and a `config`."""

    def __init__(
        self,
        host: Host,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        peer: Peer,
        *,
        identity: Identity | None = None,
        config: str = "",
    ) -> None:
        self._host = host
        self._peer = peer
        self._identity = identity
        self._config = config
        self._registered: asyncio.Future[Identity] = asyncio.get_running_loop().create_future()
        self._link = Link(*streams, self._serve)
        # Done when the plugin takes part, or will not.
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Until the connection ends. Raises nothing: the log says what was wrong."""
        try:
            async with alongside(self._link.run()) as receiving:
                receiving.add_done_callback(self._ended)
                plugin = await self._introduced()
                if plugin is None:
                    return
                try:
                    if await self._joined(plugin):
                        self._settle()
                        await asyncio.wait({receiving})
                finally:
                    self._host.registry.remove(plugin)
                    self._link.close("it is not needed any more")
                    log.warning("nri_plugin_gone", **self._facts(plugin), reason=self._link.reason)
        finally:
            self._link.close("the agent stops")
            self._settle()

    async def shut_down(self, limit_s: float) -> None:
        """Tell the plugin that the agent stops, and end the connection."""
        try:
            await self._link.call("Shutdown", b"", limit_s)
        except (LostError, RefusedError, TimeoutError):
            pass
        finally:
            self._link.close("the agent stops")

    async def _introduced(self) -> Plugin | None:
        """The plugin once it has registered and is configured; None if it fails to."""
        limits = self._host.limits
        try:
            async with asyncio.timeout(limits.registration_s):
                identity = await self._registered
            plugin = Plugin(
                identity=identity,
                peer=self._peer,
                link=self._link,
                limits=limits,
                tally=self._host.tally,
            )
            await configured(plugin, self._configuration())
        except (TimeoutError, LostError, RefusedError, OversizedError, ValueError) as error:
            reason = str(error) or "it did not answer in time"
            if self._link.silent and not self._link.open:
                return None  # no plugin: a program such as the doctor looked who serves here
            self._link.close(reason)
            log.error(  # noqa: TRY400 - its text is enough
                "nri_plugin_not_registered",
                plugin=str(self._identity or ""),
                pid=self._peer.pid,
                reason=reason,
            )
            return None
        return plugin

    def _ended(self, _receiving: object) -> None:
        """A connection that has ended registers nobody."""
        if not self._registered.done():
            self._registered.set_exception(LostError(self._link.reason))
            self._registered.exception()  # taken: nobody may wait for it

    def _configuration(self) -> nri_pb2.ConfigureRequest:
        limits = self._host.limits
        return nri_pb2.ConfigureRequest(
            config=self._config,
            runtime_name="criagent",
            runtime_version=VERSION,
            registration_timeout=int(limits.registration_s * 1000),
            request_timeout=int(limits.request_s * 1000),
            NRI_version=NRI_VERSION,
        )

    async def _joined(self, plugin: Plugin) -> bool:
        """Add it and tell it what there is; whether it takes part."""
        await self._host.registry.add(plugin)
        pods, containers = await self._host.known()
        try:
            updates = await _synchronized(plugin, pods, containers)
        except (TimeoutError, LostError, RefusedError, OversizedError, ValueError) as error:
            reason = str(error) or "it did not answer in time"
            self._link.close(f"it was not synchronized: {reason}")
            return False
        plugin.synchronized.set_result(True)
        log.info(
            "nri_plugin_registered",
            **self._facts(plugin),
            events=plugin.mask,
            pods=len(pods),
            containers=len(containers),
        )
        await self._host.effects.update(updates, str(plugin))
        return True

    def _facts(self, plugin: Plugin) -> dict[str, object]:
        return {"plugin": str(plugin), "pid": self._peer.pid}

    def _settle(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)

    # Calls of the plugin.

    async def _serve(self, method: str, payload: bytes) -> bytes:
        try:
            if method == "RegisterPlugin":
                self._register(nri_pb2.RegisterPluginRequest.FromString(payload))
                return b""
            if method == "UpdateContainers":
                return await self._update(nri_pb2.UpdateContainersRequest.FromString(payload))
        except DecodeError as error:
            raise RefusedError(Code.INVALID_ARGUMENT, f"{method}: {error}") from None
        raise RefusedError(Code.UNIMPLEMENTED, f"method {method[:80]}")

    def _register(self, request: nri_pb2.RegisterPluginRequest) -> None:
        if self._registered.done():
            raise RefusedError(Code.FAILED_PRECONDITION, "the plugin is registered already")
        try:
            identity = self._identity or Identity(request.plugin_idx, request.plugin_name)
        except ValueError as error:
            self._registered.set_exception(error)
            raise RefusedError(Code.INVALID_ARGUMENT, str(error)) from None
        self._registered.set_result(identity)

    async def _update(self, request: nri_pb2.UpdateContainersRequest) -> bytes:
        if not self._registered.done() or self._registered.exception() is not None:
            raise RefusedError(Code.FAILED_PRECONDITION, "the plugin has to register first")
        who = str(self._registered.result())
        await self._host.effects.evict(request.evict, who)
        failed = await self._host.effects.update(request.update, who)
        return nri_pb2.UpdateContainersResponse(failed=failed).SerializeToString()


async def _synchronized(
    plugin: Plugin, pods: Sequence[nri_pb2.PodSandbox], containers: Sequence[nri_pb2.Container]
) -> list[nri_pb2.ContainerUpdate]:
    """What the plugin wants to change of what there is.

    Raises what `Plugin.call` raises, and ValueError when it cannot take the state in pieces.
    """
    *first, last = pieces(pods, containers)
    for piece in first:
        answer = await plugin.synchronize(piece)
        if answer.update or not answer.more:
            raise ValueError("it does not take the pods and containers in pieces")
    answer = await plugin.synchronize(last)
    return list(answer.update)


def pieces(
    pods: Sequence[nri_pb2.PodSandbox], containers: Sequence[nri_pb2.Container]
) -> list[nri_pb2.SynchronizeRequest]:
    """The state in requests that ttrpc takes; all but the last say that more follows."""
    found = [nri_pb2.SynchronizeRequest()]
    size = 0
    every: tuple[nri_pb2.PodSandbox | nri_pb2.Container, ...] = (*pods, *containers)
    for message in every:
        length = message.ByteSize() + _AROUND
        if size and size + length > _PIECE:
            found[-1].more = True
            found.append(nri_pb2.SynchronizeRequest())
            size = 0
        size += length
        if isinstance(message, nri_pb2.PodSandbox):
            found[-1].pods.append(message)
        else:
            found[-1].containers.append(message)
    return found
