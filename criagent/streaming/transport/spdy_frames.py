# SPDX-License-Identifier: Apache-2.0
"""SPDY/3.1 frames: bytes to values and back, with limits. Sans-IO, stateless but for compression.

SPDY protocol draft 3.1, section 2. Header blocks share one zlib stream per direction, so blocks
must be decoded and encoded in wire order.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

VERSION = 3
FLAG_FIN = 0x1
SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = (
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    9,
)
RST_PROTOCOL_ERROR, RST_INVALID_STREAM, RST_REFUSED_STREAM, RST_CANCEL = 1, 2, 3, 5

MAX_FRAME = 1 << 20  # the draft allows 16 MiB; clients send 32 KiB
MAX_HEADERS = 1 << 14  # bytes of an inflated header block
MAX_HEADER_COUNT = 64

_HEAD = struct.Struct("!II")
_ENTRIES = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language "
    "accept-ranges age allow authorization cache-control connection content-base content-encoding "
    "content-language content-length content-location content-md5 content-range content-type date "
    "etag expect expires from host if-match if-modified-since if-none-match if-range "
    "if-unmodified-since last-modified location max-forwards pragma proxy-authenticate "
    "proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status"
).split()
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, "
    "Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    "application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset="
    "utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _dictionary() -> bytes:
    """The zlib dictionary of section 2.6.10.1."""
    entries = [
        *_ENTRIES,
        "200 OK",
        "version",
        "HTTP/1.1",
        "url",
        "public",
        "set-cookie",
        "keep-alive",
    ]
    entries.append("origin")
    return b"".join(struct.pack("!I", len(w)) + w.encode() for w in entries) + _TAIL.encode()


DICTIONARY = _dictionary()


class SpdyError(Exception):
    """The peer broke the protocol or a limit; the connection cannot continue."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. `kind` 0 means data; `stream` is 0 where the frame has none."""

    kind: int
    stream: int
    flags: int
    payload: bytes


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete; the caller has to consume all. Raises SpdyError."""
        self._buffer += data
        at = 0
        try:
            while len(self._buffer) - at >= _HEAD.size:
                first, second = _HEAD.unpack_from(self._buffer, at)
                length, flags = second & 0xFFFFFF, second >> 24
                if length > MAX_FRAME:
                    raise SpdyError(f"a frame of {length} bytes")
                start = at + _HEAD.size
                if len(self._buffer) - start < length:
                    break
                with memoryview(self._buffer) as view:
                    payload = bytes(view[start : start + length])
                at = start + length
                yield _frame(first, flags, payload)
        finally:
            del self._buffer[:at]


def _frame(first: int, flags: int, payload: bytes) -> Frame:
    if not first >> 31:
        return Frame(0, first, flags, payload)
    version, kind = first >> 16 & 0x7FFF, first & 0xFFFF
    if version != VERSION:
        raise SpdyError(f"protocol version {version}")
    stream = 0
    if kind in {SYN_STREAM, SYN_REPLY, RST_STREAM, HEADERS, WINDOW_UPDATE}:
        if len(payload) < 4:
            raise SpdyError("a control frame lacks its stream")
        stream = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
    return Frame(kind, stream, flags, payload)


def data_frame(stream: int, data: bytes, *, fin: bool = False) -> bytes:
    """A data frame of at most 16 MiB."""
    return _HEAD.pack(stream, (FLAG_FIN if fin else 0) << 24 | len(data)) + data


def control_frame(kind: int, payload: bytes, flags: int = 0) -> bytes:
    """A control frame with its payload, the stream included where it has one."""
    return _HEAD.pack(1 << 31 | VERSION << 16 | kind, flags << 24 | len(payload)) + payload


def number(value: int) -> bytes:
    """Four bytes."""
    return struct.pack("!I", value)


class HeaderDecoder:
    """Header blocks of one direction, in the order of the wire."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(zdict=DICTIONARY)

    def decode(self, block: bytes) -> dict[str, str]:
        """Names in lower case. Raises SpdyError for malformed or too large blocks."""
        try:
            plain = self._zlib.decompress(block, MAX_HEADERS + 1)
        except zlib.error as exc:
            raise SpdyError(f"a header block: {exc}") from None
        if len(plain) > MAX_HEADERS or self._zlib.unconsumed_tail:
            raise SpdyError(f"a header block of more than {MAX_HEADERS} bytes")
        return _headers(plain)


class HeaderEncoder:
    """Header blocks of the other direction."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(zdict=DICTIONARY)

    def encode(self, headers: Mapping[str, str]) -> bytes:
        """A block that continues the shared stream."""
        parts = [number(len(headers))]
        for name, value in headers.items():
            for text in (name.lower().encode("latin-1"), value.encode("latin-1")):
                parts += [number(len(text)), text]
        return self._zlib.compress(b"".join(parts)) + self._zlib.flush(zlib.Z_SYNC_FLUSH)


def _headers(plain: bytes) -> dict[str, str]:
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        if size > len(plain) - at:
            raise SpdyError("a header block ends too soon")
        part = plain[at : at + size]
        at += size
        return part

    count = int.from_bytes(take(4), "big")
    if count > MAX_HEADER_COUNT:
        raise SpdyError(f"a header block with {count} headers")
    headers: dict[str, str] = {}
    for _ in range(count):
        name = take(int.from_bytes(take(4), "big")).decode("latin-1").lower()
        headers[name] = take(int.from_bytes(take(4), "big")).decode("latin-1")
    if at != len(plain):
        raise SpdyError("a header block has bytes after its last header")
    return headers
