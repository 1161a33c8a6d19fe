# SPDX-License-Identifier: Apache-2.0
"""Audit lines: one in the log when a session begins, one when it has ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from criagent.runtime.exec.plan import Size
from criagent.streaming.channels import Channels
from criagent.streaming.outcome import Outcome

_PORTS_SHOWN = 20
_ERROR_MOST = 512

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Facts = dict[str, object]


@asynccontextmanager
async def logged(kind: str, about: Facts, ending: Callable[[], Facts]) -> AsyncIterator[None]:
    """Log `session_started` before the block, with the `kind` of session (exec, attach,
    port_forward) and the facts in `about`; log `session_ended` after it with the same facts, its
    seconds and the facts that `ending` returns.
    """
    began = time.monotonic()
    log.info("session_started", session=kind, **about)
    try:
        yield
    finally:
        seconds = round(time.monotonic() - began, 3)
        log.info("session_ended", session=kind, **about, **ending(), seconds=seconds)


class CountedChannels:
    """Channels that count their bytes and record the outcome."""

    def __init__(self, channels: Channels) -> None:
        self.gone = channels.gone
        self._channels = channels
        self._received = 0
        self._sent = 0
        self._outcome: Outcome | None = None

    def ending(self) -> Facts:
        """`exit_code`, or `error`; `client_left` when the outcome could not be sent; bytes."""
        facts: Facts = {"received_bytes": self._received, "sent_bytes": self._sent}
        if self._outcome is None:
            return {"client_left": True, **facts}
        if self._outcome.failure:
            return {"error": self._outcome.failure[:_ERROR_MOST], **facts}
        return {"exit_code": self._outcome.code, **facts}

    async def stdin(self) -> AsyncIterator[bytes]:
        """See `Channels`."""
        async for data in self._channels.stdin():
            self._received += len(data)
            yield data

    def sizes(self) -> AsyncIterator[Size]:
        """See `Channels`."""
        return self._channels.sizes()

    async def write(self, data: bytes, *, stderr: bool) -> None:
        """See `Channels`."""
        await self._channels.write(data, stderr=stderr)
        self._sent += len(data)

    async def finish(self, outcome: Outcome) -> None:
        """See `Channels`."""
        self._outcome = outcome
        await self._channels.finish(outcome)


class Traffic:
    """Connections of a port-forward, by port, and their bytes."""

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0
        self.failed = 0
        self.connections: Counter[int] = Counter()

    def ending(self) -> Facts:
        """`connections` of each port (of the twenty with the most), bytes, failed connections."""
        most = dict(self.connections.most_common(_PORTS_SHOWN))
        return {
            "connections": {str(port): count for port, count in most.items()},
            "failed": self.failed,
            "received_bytes": self.received,
            "sent_bytes": self.sent,
        }
