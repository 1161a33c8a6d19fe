# SPDX-License-Identifier: Apache-2.0
"""A small streaming client for what real ones do not do: odd requests, hostile frames, floods.

What users' clients see is tested with crictl and with Python's kubernetes package.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Self
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.frames import Frame as WebSocketFrame
from websockets.frames import Opcode
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from criagent.streaming.transport import spdy_frames as frames
from criagent.streaming.transport.spdy_frames import (
    Frame,
    FrameReader,
    HeaderEncoder,
    control_frame,
    number,
)

V4 = "v4.channel.k8s.io"
SPDY_HEADERS = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": V4}


class Refused(Exception):  # noqa: N818 - an outcome, not a fault
    """Another answer than 101."""

    def __init__(self, status: int, head: str) -> None:
        super().__init__(head)
        self.status = status


def connect(
    url: str, *, tls: ssl.SSLContext | None = None, buffer: int = 0, timeout: float = 30
) -> socket.socket:
    """A connection to the server of `url`; `buffer` limits what the kernel holds for us."""
    parts = urlsplit(url)
    made = socket.socket(socket.AF_INET6 if ":" in str(parts.hostname) else socket.AF_INET)
    if buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    made.settimeout(timeout)
    made.connect((str(parts.hostname), int(parts.port or 0)))
    return made if tls is None else tls.wrap_socket(made, server_hostname=parts.hostname)


def request(url: str, headers: dict[str, str], method: str = "POST") -> bytes:
    """The head of a request."""
    lines = [f"{method} {urlsplit(url).path} HTTP/1.1", "Host: node"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def answer(connection: socket.socket) -> tuple[int, str, bytes]:
    """Status, head and what came after the head."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(4096)
        if not part:
            raise EOFError(data)
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode("latin-1"), rest


def asked(url: str, headers: dict[str, str], method: str = "POST") -> tuple[int, str]:
    """Status and head of the answer to one request."""
    with connect(url) as connection:
        connection.sendall(request(url, headers, method))
        status, head, _ = answer(connection)
        return status, head


class Spdy:
    """A SPDY connection; `protocols` are offered in this order."""

    def __init__(self, url: str, *protocols: str, connection: socket.socket | None = None) -> None:
        self.socket = connection or connect(url)
        offered = ", ".join(protocols or (V4,))
        self.socket.sendall(request(url, {**SPDY_HEADERS, "X-Stream-Protocol-Version": offered}))
        status, head, first = answer(self.socket)
        if status != 101:
            self.close()
            raise Refused(status, head)
        self.head = head
        self.encoder = HeaderEncoder()
        self._reader = FrameReader()
        self._frames = self._come(first)
        self._next = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def syn(self, stream: int, headers: dict[str, str], *, fin: bool = False) -> bytes:
        """A SYN_STREAM frame."""
        block = self.encoder.encode(headers)
        payload = number(stream) + number(0) + b"\0\0" + block
        return control_frame(frames.SYN_STREAM, payload, frames.FLAG_FIN if fin else 0)

    def open(self, *parts: bytes, fin: bool = False, **headers: str) -> int:
        """Open a stream, and send these on it with the same call."""
        stream, self._next = self._next, self._next + 2
        following = b"".join(frames.data_frame(stream, part) for part in parts)
        self.socket.sendall(self.syn(stream, headers, fin=fin) + following)
        return stream

    def send(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        for at in range(0, len(data) or 1, 32768):
            part = data[at : at + 32768]
            last = fin and at + 32768 >= len(data)
            self.socket.sendall(frames.data_frame(stream, part, fin=last))

    def window(self, stream: int, more: int) -> None:
        payload = number(stream) + number(more)
        self.socket.sendall(control_frame(frames.WINDOW_UPDATE, payload))

    def reset(self, stream: int) -> None:
        payload = number(stream) + number(frames.RST_CANCEL)
        self.socket.sendall(control_frame(frames.RST_STREAM, payload))

    def frame(self) -> Frame | None:
        """The next frame; None at the end."""
        return next(self._frames, None)

    def ended(self) -> bool:
        """Whether the server closes the connection, whatever comes before."""
        try:
            while self.frame() is not None:
                pass
        except ConnectionError:
            pass
        return True

    def until_fin(self, *streams: int) -> dict[int, bytes]:
        """What comes on `streams` up to the end of each."""
        data = {stream: bytearray() for stream in streams}
        left = set(streams)
        while left and (frame := self.frame()) is not None:
            if frame.stream in data and frame.kind == 0:
                data[frame.stream] += frame.payload
            if frame.kind == frames.RST_STREAM or (not frame.kind and frame.flags):
                left.discard(frame.stream)
        if left:
            raise EOFError(f"streams {left} did not end")
        return {stream: bytes(found) for stream, found in data.items()}

    def _come(self, first: bytes) -> Iterator[Frame]:
        data = first
        while True:
            yield from list(self._reader.feed(data))
            data = self.socket.recv(1 << 16)
            if not data:
                return


class Command(Spdy):
    """An exec or attach over SPDY with its streams opened."""

    def __init__(self, url: str, *kinds: str, protocol: str = V4, buffer: int = 0) -> None:
        super().__init__(url, protocol, connection=connect(url, buffer=buffer))
        self.streams = {kind: self.open(streamtype=kind) for kind in ("error", *kinds)}

    def result(self) -> tuple[bytes, bytes, Any]:
        """stdout, stderr and the Status (v4) or text of the error stream."""
        wanted = {k: s for k, s in self.streams.items() if k in {"error", "stdout", "stderr"}}
        found = self.until_fin(*wanted.values())
        texts = {kind: found[stream] for kind, stream in wanted.items()}
        status = texts["error"]
        told = json.loads(status) if status.startswith(b"{") else status.decode()
        return texts.get("stdout", b""), texts.get("stderr", b""), told


class WebSocket:
    """A WebSocket of the channel protocols."""

    def __init__(self, url: str, *protocols: str, tls: ssl.SSLContext | None = None) -> None:
        self.socket = connect(url, tls=tls)
        self._protocol = ClientProtocol(
            parse_uri("ws" + url.removeprefix("http")),
            subprotocols=[Subprotocol(name) for name in protocols] or None,
            max_size=None,
        )
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        while not (events := self._protocol.events_received()):
            self._receive()
        if self._protocol.handshake_exc is not None:
            self.socket.close()
            raise Refused(getattr(events[0], "status_code", 0), str(events[0]))
        self._events = events[1:]

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def subprotocol(self) -> str | None:
        return self._protocol.subprotocol

    def send(self, message: bytes, *, text: bool = False) -> None:
        (self._protocol.send_text if text else self._protocol.send_binary)(message)
        self._flush()

    def message(self) -> bytes | None:
        """The next message; None at the end."""
        while True:
            while not self._events:
                if self._protocol.close_rcvd is not None or not self._receive():
                    return None
                self._events = self._protocol.events_received()
            event = self._events.pop(0)
            if isinstance(event, WebSocketFrame) and event.opcode in {Opcode.TEXT, Opcode.BINARY}:
                return bytes(event.data)

    def channels(self) -> dict[int, bytes]:
        """All data up to the end, by channel."""
        found: dict[int, bytes] = {}
        while (message := self.message()) is not None:
            found[message[0]] = found.get(message[0], b"") + message[1:]
        return found

    def _receive(self) -> bool:
        data = self.socket.recv(1 << 16)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        self._flush()
        return bool(data)

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self.socket.sendall(data)
