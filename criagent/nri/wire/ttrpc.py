# SPDX-License-Identifier: Apache-2.0
"""ttrpc's messages: bytes to values and back, with limits. Sans-IO. Unary calls only.

A message is a header of ten bytes and a body. The header has the length of the body and the number
of the call, both 32 bits big-endian, a type and flags; the body is a Request or a Response.
The caller counts its calls with odd numbers that only grow.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Iterator

from google.protobuf.message import DecodeError

from criagent._proto import ttrpc_pb2

MAX_BODY = 4 << 20

_HEAD = struct.Struct("!IIBB")


class Kind(enum.IntEnum):
    """Types of messages."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3  # of a stream, which NRI does not have


class Code(enum.IntEnum):
    """The statuses of gRPC that the agent sends or acts on."""

    OK = 0
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12


class TtrpcError(Exception):
    """The peer broke the protocol; the connection cannot continue."""


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One message with its undecoded body."""

    call: int
    kind: int
    body: bytes


class Reader:
    """Splits a stream of bytes into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Each message that `data` completes. Raises TtrpcError for one above MAX_BODY."""
        self._data += data
        while len(self._data) >= _HEAD.size:
            length, call, kind, _flags = _HEAD.unpack_from(self._data)
            if length > MAX_BODY:
                raise TtrpcError(f"a message of {length} bytes; the most is {MAX_BODY}")
            end = _HEAD.size + length
            if len(self._data) < end:
                return
            body = bytes(self._data[_HEAD.size : end])
            del self._data[:end]
            yield Message(call, kind, body)


def request(call: int, service: str, method: str, payload: bytes, *, timeout_s: float) -> bytes:
    """The bytes of a call. Raises OversizedError when they are more than a peer accepts."""
    body = ttrpc_pb2.Request(
        service=service, method=method, payload=payload, timeout_nano=int(timeout_s * 1e9)
    ).SerializeToString()
    if len(body) > MAX_BODY:
        raise OversizedError(len(body))
    return _HEAD.pack(len(body), call, Kind.REQUEST, 0) + body


def response(call: int, payload: bytes, code: int = Code.OK, text: str = "") -> bytes:
    """The bytes of an answer: a payload, or a status that is not OK with its text."""
    answer = ttrpc_pb2.Response(payload=payload)
    if code != Code.OK:
        answer = ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=code, message=text))
    body = answer.SerializeToString()
    return _HEAD.pack(len(body), call, Kind.RESPONSE, 0) + body


def parsed_request(body: bytes) -> ttrpc_pb2.Request:
    """The request in a message. Raises TtrpcError."""
    try:
        return ttrpc_pb2.Request.FromString(body)
    except DecodeError as error:
        raise TtrpcError(f"a request that cannot be decoded: {error}") from None


def parsed_response(body: bytes) -> ttrpc_pb2.Response:
    """The response in a message. Raises TtrpcError."""
    try:
        return ttrpc_pb2.Response.FromString(body)
    except DecodeError as error:
        raise TtrpcError(f"a response that cannot be decoded: {error}") from None


class OversizedError(Exception):
    """A request of `size` bytes, which is above MAX_BODY."""

    def __init__(self, size: int) -> None:
        super().__init__(f"a request of {size} bytes; the most is {MAX_BODY}")
        self.size = size
