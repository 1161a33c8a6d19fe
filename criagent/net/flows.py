# SPDX-License-Identifier: Apache-2.0
"""UDP flows of hostPorts: the kernel keeps sending them to their first destination."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from criagent.model.common import Protocol
from criagent.net.hostport import Forward
from criagent.process.child import run

_LIMIT_S = 5.0  # on a busy node it reads a table of a million flows

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def forget_flows(changed: Sequence[Forward]) -> None:
    """Make conntrack forget the known UDP flows to these host ports.

    Flows also end by themselves some time after the last datagram, so a missing or hanging
    conntrack is only logged.
    """
    families = {4: "ipv4", 6: "ipv6"}
    try:
        async with asyncio.timeout(_LIMIT_S):
            for forward in changed:
                if forward.protocol is Protocol.UDP:
                    command = ["conntrack", "-D", "-f", families[forward.version], "-p", "udp"]
                    port = ["--orig-port-dst", str(forward.host_port)]
                    await run([*command, *port], limit_s=None)
    except TimeoutError:
        log.warning("conntrack_hangs", limit_s=_LIMIT_S)
    except OSError as exc:
        log.warning("conntrack_missing", error=str(exc), cure="install conntrack")
