# SPDX-License-Identifier: Apache-2.0
"""NRI's connection multiplexer: one socket, several byte streams. Sans-IO.

A frame is the number of its stream and the length of its payload, both 32 bits big-endian, and the
payload. Streams are not opened or closed: both sides know their numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

PLUGIN_SERVICE = 1  # the agent calls, the plugin answers
RUNTIME_SERVICE = 2  # the plugin calls, the agent answers

MAX_PAYLOAD = 10 + (4 << 20)  # a ttrpc header and its largest message

_HEAD = struct.Struct("!II")
# Plugins in Go read a stream through a buffer of this size, and fail when a frame does not fit into
# what they have room for: the buffer, or else the rest of the message that they are reading.
_BUFFER = 4096


class MuxError(Exception):
    """The peer broke the framing; the connection cannot continue."""


class Demultiplexer:
    """Splits what a socket delivers into the payloads of its streams."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The stream and payload of each frame that `data` completes.

        Raises MuxError for a frame longer than MAX_PAYLOAD.
        """
        self._data += data
        while len(self._data) >= _HEAD.size:
            stream, length = _HEAD.unpack_from(self._data)
            if length > MAX_PAYLOAD:
                raise MuxError(f"a frame of {length} bytes; the most is {MAX_PAYLOAD}")
            end = _HEAD.size + length
            if len(self._data) < end:
                return
            payload = bytes(self._data[_HEAD.size : end])
            del self._data[:end]
            yield stream, payload


def frames(stream: int, message: bytes) -> bytes:
    """One ttrpc message in frames that a plugin in Go can read: its first 4096 bytes in one, and
    the rest in another, as the writer of Go's ttrpc divides it.
    """
    parts = (message[:_BUFFER], message[_BUFFER:])
    return b"".join(_HEAD.pack(stream, len(part)) + part for part in parts if part)
