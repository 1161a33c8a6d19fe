# SPDX-License-Identifier: Apache-2.0
"""The upgrade that a request asks for, or the answer that refuses it. Sans-IO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import h11

Transport = Literal["spdy", "websocket"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that ends the connection."""

    status: int
    text: str
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> tuple[h11.Response, h11.Data]:
        """The same as an h11 response."""
        body = self.text.encode() + b"\n"
        fields = {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        headers = [*fields.items(), *self.headers.items()]
        return h11.Response(status_code=self.status, headers=headers), h11.Data(data=body)


def method_refusal(request: h11.Request) -> Refusal | None:
    """Sessions begin with GET or POST."""
    if request.method in {b"GET", b"POST"}:
        return None
    return Refusal(405, "use GET or POST", {"Allow": "GET, POST"})


def transport(request: h11.Request) -> Transport | Refusal:
    """The transport that the Upgrade and Connection headers request."""
    if "upgrade" not in tokens(request, b"connection", lower=True):
        return Refusal(400, "the header Connection lacks Upgrade")
    wanted = tokens(request, b"upgrade", lower=True)
    if "websocket" in wanted:
        if request.method != b"GET":
            return Refusal(400, "a WebSocket must begin with GET")
        return "websocket"
    if "spdy/3.1" in wanted:
        return "spdy"
    return Refusal(400, "upgrade to SPDY/3.1 or websocket")


def spdy_protocol(request: h11.Request, known: Sequence[str]) -> str | Refusal:
    """The client's first choice that is supported."""
    offered = tokens(request, b"x-stream-protocol-version")
    if not offered:
        return Refusal(400, "the header X-Stream-Protocol-Version is missing")
    chosen = next((name for name in offered if name in known), None)
    if chosen is None:
        accepted = {"X-Accepted-Stream-Protocol-Versions": ", ".join(known)}
        return Refusal(403, f"none of {', '.join(offered)} is supported", accepted)
    return chosen


def tokens(request: h11.Request, name: bytes, *, lower: bool = False) -> list[str]:
    """The comma-separated values of a header, all its lines together."""
    found: list[str] = []
    for key, value in request.headers:
        if key == name:
            text = value.decode("latin-1")
            found += [part.strip() for part in (text.lower() if lower else text).split(",")]
    return [word for word in found if word]
