# SPDX-License-Identifier: Apache-2.0
"""WebSocket messages of the channel protocols: a byte that names the channel, then its data.

In the base64 protocols both are text: a digit (counted from "0"), then base64. Sans-IO.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
_ZERO = ord("0")


class ChannelError(Exception):
    """The peer sent a message that is invalid in its protocol; the socket cannot continue."""


@dataclass(frozen=True, slots=True)
class Message:
    """Bytes of a channel."""

    channel: int
    data: bytes


class ChannelCodec:
    """Messages of one subprotocol; "" is the legacy binary one."""

    def __init__(self, subprotocol: str) -> None:
        self.text = "base64" in subprotocol
        self.version = int(subprotocol[1]) if subprotocol[:2] in {"v4", "v5"} else 1

    def encode(self, channel: int, data: bytes) -> bytes:
        """One message."""
        if self.text:
            return bytes([_ZERO + channel]) + base64.b64encode(data)
        return bytes([channel]) + data

    def decode(self, message: bytes) -> Message | None:
        """None for an empty message, which has no meaning. Raises ChannelError."""
        if not message:
            return None
        if not self.text:
            return Message(message[0], message[1:])
        if message[0] < _ZERO:
            raise ChannelError(f"unknown channel {message[:1]!r}")
        try:
            return Message(message[0] - _ZERO, base64.b64decode(message[1:], validate=True))
        except binascii.Error as exc:
            raise ChannelError(f"invalid base64: {exc}") from None

    def closed(self, message: Message) -> int | None:
        """The channel that a message half-closes (v5), or None."""
        if self.version < 5 or message.channel != CLOSE or len(message.data) != 1:
            return None
        return message.data[0]
