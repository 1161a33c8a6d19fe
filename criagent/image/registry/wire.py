# SPDX-License-Identifier: Apache-2.0
"""Response headers as Go's net/http takes them, for aiohttp.

aiohttp's parser refuses what every Go client accepts: fields of over 8 KiB, names with blanks, a
Content-Length that is there twice with one value or beside chunks. So each header is gathered and
put in order before the parser sees it; bodies pass straight through.
"""

from __future__ import annotations

import asyncio
import functools
import re
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

MAX_HEADER = 1 << 20  # bytes of one header, all fields together
MAX_LINES = 4096
_END = re.compile(rb"\n\r?\n")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_INFORMATIONAL = re.compile(rb"HTTP/[0-9.]+ 1(?!01)[0-9][0-9]")
_BREAKS = bytes.maketrans(b"\r\n\0", b"   ")


class HeaderError(Exception):
    """A header that is over its limits."""


def ordered(header: bytes) -> bytes:
    """The lines of `header` that the parser takes, folded ones as one. Raises HeaderError."""
    lines = header.split(b"\n", MAX_LINES + 1)
    if len(lines) > MAX_LINES:
        raise HeaderError(f"the answer's header has more than {MAX_LINES} lines")
    fields: list[tuple[bytes, bytes]] = []
    for line in lines[1:]:
        if line[:1] in (b" ", b"\t") and fields:
            name, value = fields[-1]
            fields[-1] = name, value + b" " + line.strip()
            continue
        name, colon, value = line.partition(b":")
        if colon and _NAME.fullmatch(name):  # any other name means nothing to a client
            fields.append((name, value.strip()))
    return b"\r\n".join(
        (
            lines[0].strip(),
            *(name + b": " + value.translate(_BREAKS) for name, value in _framed(fields)),
            b"\r\n",
        )
    )


def _framed(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """`fields` with one length: none beside chunks, and of equal ones the first (RFC 9112, 6.3)."""
    chunked = any(
        name.lower() == b"transfer-encoding" and value.lower() == b"chunked"
        for name, value in fields
    )
    lengths: set[bytes] = set()
    single = []
    for name, value in fields:
        if name.lower() == b"content-length":
            if chunked or value in lengths:
                continue
            lengths.add(value)
        single.append((name, value))
    return single


class HeaderFilter(ResponseHandler):
    """aiohttp's protocol of one connection with `ordered` in front of the parser."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._header: bytearray | None = None  # None while a body arrives, or nothing is asked

    def set_response_params(self, **settings: Any) -> None:
        """A request is about to be sent; its answer begins with a header."""
        self._header = bytearray()
        super().set_response_params(**settings)

    def data_received(self, data: bytes) -> None:
        """Bytes of the server."""
        while self._header is not None and self._parser is not None:
            header = self._header
            start = max(0, len(header) - 2)
            header += data
            end = _END.search(header, start)
            if (end.end() if end else len(header)) > MAX_HEADER:
                self._refuse(f"the answer's header is larger than {MAX_HEADER} bytes")
                return
            if end is None:
                return
            whole, data = bytes(header[: end.start()]), bytes(header[end.end() :])
            self._header = bytearray() if _INFORMATIONAL.match(whole) else None
            try:
                super().data_received(ordered(whole))
            except HeaderError as exc:
                self._refuse(str(exc))
                return
            if not data:
                return
        super().data_received(data)

    def _refuse(self, text: str) -> None:
        if self.transport is not None:
            self.transport.close()
        self._header = None
        self.set_exception(HttpProcessingError(code=0, message=text))


class Connector(aiohttp.TCPConnector):
    """Connections with a limit for each host, and none over all: hosts cannot starve others."""

    def __init__(self, per_host: int) -> None:
        super().__init__(limit=0, limit_per_host=per_host)
        make = functools.partial(HeaderFilter, loop=asyncio.get_running_loop())
        self._factory = make  # type: ignore[assignment]  # a partial is not covariant
