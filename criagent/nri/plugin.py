# SPDX-License-Identifier: Apache-2.0
"""One registered plugin: what it subscribed to, calls of it, and what its failures mean.

A refusal, which is an answer, fails what was asked about. A failure (no answer in time, a lost
connection, garbage) ends the plugin, and what was asked about goes on without it, unless the plugin
has asked for something else when it was configured.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from typing import TypeVar

import structlog
from google.protobuf.message import DecodeError, Message

from criagent._proto import nri_pb2
from criagent.base.errors import AgentError, ExhaustedError, UnavailableError
from criagent.nri import events
from criagent.nri.events import Event
from criagent.nri.tally import Tally
from criagent.nri.wire.link import Link, LostError, Peer, RefusedError
from criagent.nri.wire.ttrpc import Code, OversizedError

M = TypeVar("M", bound=Message)

_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,128}")
_INDEX = re.compile(r"[0-9]{2}")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """The index, which orders plugins, and the name of a plugin. Raises ValueError for bad ones."""

    index: str
    name: str

    def __post_init__(self) -> None:
        if not _INDEX.fullmatch(self.index):
            raise ValueError(f"plugin index {self.index[:80]!r} is not two digits")
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"plugin name {self.name[:80]!r} is not 1 to 128 letters, digits and -_.+"
            )

    def __str__(self) -> str:
        return f"{self.index}-{self.name}"

    @classmethod
    def of_file(cls, name: str) -> Identity:
        """The identity in the name of a program, "10-name"."""
        index, _, rest = name.partition("-")
        return cls(index, rest)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds for a plugin to register, and to answer a call."""

    registration_s: float
    request_s: float


class Plugin:
    """A plugin that has registered."""

    def __init__(
        self, *, identity: Identity, peer: Peer, link: Link, limits: Limits, tally: Tally
    ) -> None:
        self.identity = identity
        self.peer = peer
        self.mask = 0
        self.policy = nri_pb2.FailurePolicy()
        self.synchronized: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._link = link
        self._limits = limits
        self._tally = tally
        self._old: set[int] = set()  # events for which it knows only StateChange

    def __str__(self) -> str:
        return str(self.identity)

    @property
    def alive(self) -> bool:
        """Whether it can be called."""
        return self._link.open

    def hears(self, event: Event) -> bool:
        """Whether it has subscribed to the event."""
        return bool(self.mask & event.bit) and self.alive

    async def ready(self) -> bool:
        """Whether it knows the pods and containers there are; waits while it is told."""
        return await asyncio.shield(self.synchronized)

    async def synchronize(self, request: nri_pb2.SynchronizeRequest) -> nri_pb2.SynchronizeResponse:
        """Tell it what there is, which is a part of its registration and takes as long as that.

        Raises what `call` raises.
        """
        limit_s = max(self._limits.registration_s, self._limits.request_s)
        return await self.call("Synchronize", request, nri_pb2.SynchronizeResponse, limit_s)

    async def call(
        self, method: str, request: Message, answer: type[M], limit_s: float | None = None
    ) -> M:
        """Any call. Raises what `Link.call` raises, and LostError for an answer that is none."""
        began = time.monotonic()
        name = str(self)
        self._tally.calls[name] += 1
        try:
            payload = await self._link.call(
                method, request.SerializeToString(), limit_s or self._limits.request_s
            )
            return answer.FromString(payload)
        except DecodeError as error:
            self._tally.failures[name] += 1
            self.end(f"the answer to {method} cannot be decoded: {error}")
            raise LostError(self._link.reason) from None
        except (LostError, TimeoutError):
            self._tally.failures[name] += 1
            raise
        except RefusedError as refused:
            if refused.code != Code.UNIMPLEMENTED:
                self._tally.refusals[name] += 1
            raise
        finally:
            self._tally.seconds[name] += time.monotonic() - began

    async def ask(self, event: Event, request: Message) -> Message | None:
        """The plugin's answer; None if it does not hear of the event, or failed.

        Raises AgentError with the plugin's text when it refuses, ExhaustedError for a request that
        is too long, UnavailableError for a failure that must fail what was asked about.
        """
        if not self.hears(event) or not await self.ready():
            return None
        try:
            return await self._asked(event, request)
        except RefusedError as refused:
            raise AgentError(f"NRI plugin {self} refused {event.method}: {refused}") from None
        except OversizedError as error:
            raise ExhaustedError(
                f"{event.method} cannot be sent to NRI plugin {self}: {error}"
            ) from None
        except TimeoutError:
            reason = f"{event.method} was not answered within {self._limits.request_s:g} s"
            if not self.policy.keep_connected:
                self.end(reason)
            self._failed(event, reason)
        except LostError as lost:
            self._failed(event, str(lost))
        return None

    def end(self, reason: str) -> None:
        """Close the connection; a program that the agent has started is killed then."""
        self._link.close(reason)

    async def _asked(self, event: Event, request: Message) -> Message | None:
        if event.number not in self._old:
            try:
                return await self.call(event.method, request, event.answer)
            except RefusedError as refused:
                if refused.code != Code.UNIMPLEMENTED:
                    raise
            if not event.by_state_change:
                self.mask &= ~event.bit  # it cannot hear of it
                return None
            self._old.add(event.number)
        change = nri_pb2.StateChangeEvent(event=event.number)
        for name in ("pod", "container"):
            if name in request.DESCRIPTOR.fields_by_name:
                getattr(change, name).CopyFrom(getattr(request, name))
        try:
            return await self.call("StateChange", change, nri_pb2.Empty)
        except RefusedError as refused:
            if refused.code != Code.UNIMPLEMENTED:
                raise
        self.mask &= ~event.bit
        return None

    def _failed(self, event: Event, reason: str) -> None:
        log.warning(
            "nri_plugin_failed",
            plugin=str(self),
            call=event.method,
            reason=reason,
            kept=self.alive,
            fails_request=self.policy.fail_request,
        )
        if self.policy.fail_request:
            raise UnavailableError(
                f"NRI plugin {self} failed in {event.method}: {reason}; its failure policy makes "
                "this an error"
            )


async def configured(plugin: Plugin, request: nri_pb2.ConfigureRequest) -> None:
    """Configure the plugin and take its subscription.

    Raises what `Plugin.call` raises, and ValueError for events that do not exist.
    """
    answer = await plugin.call("Configure", request, nri_pb2.ConfigureResponse)
    if unknown := answer.events & ~events.ALL:
        raise ValueError(f"it subscribes to unknown events ({unknown:#x})")
    plugin.mask = answer.events or events.ALL
    plugin.policy.CopyFrom(answer.failure_policy)
