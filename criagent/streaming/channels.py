"""The remote-command protocols (exec and attach), v1 to v5, over SPDY streams and WebSockets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from criagent.runtime.exec_stream import Size
from criagent.streaming.links import SpdyLink, Stream, StreamClosed
from criagent.streaming.websocket import WebSocket

SPDY_PROTOCOLS = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
WEBSOCKET_PROTOCOLS = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
)
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255

_OPEN_S = 30.0
_MAX_RESIZE = 1024


class ClientGone(Exception):  # noqa: N818 - an outcome, not a fault
    """The client has left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which streams the session has."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


class Channels(Protocol):
    """One client of an exec or attach."""

    gone: asyncio.Event

    def stdin(self) -> AsyncIterator[bytes]: ...
    def sizes(self) -> AsyncIterator[Size]: ...
    async def write(self, data: bytes, *, stderr: bool) -> None: ...
    async def finish(self, outcome: Outcome) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it ended: an exit code, or the reason why there is none."""

    code: int = 0
    failure: str = ""

    def status(self) -> bytes:
        """The Status object of v4 and v5 (k8s.io/apimachinery, metav1.Status)."""
        document: dict[str, Any] = {"metadata": {}, "status": "Success"}
        if self.failure:
            document |= {
                "status": "Failure",
                "message": self.failure,
                "reason": "InternalError",
                "details": {"causes": [{"message": self.failure}]},
                "code": 500,
            }
        elif self.code:
            document |= {
                "status": "Failure",
                "message": self.text(),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": str(self.code)}]},
            }
        return json.dumps(document).encode()

    def text(self) -> str:
        """What the older protocols say; nothing for success."""
        if self.failure:
            return self.failure
        return f"command terminated with non-zero exit code: {self.code}" if self.code else ""


def parse_size(data: bytes) -> Size | None:
    """A resize message; None for what is none."""
    try:
        document = json.loads(data[:_MAX_RESIZE])
        width, height = int(document["Width"]), int(document["Height"])
    except (ValueError, KeyError, TypeError):
        return None
    if not 0 < width < 65536 or not 0 < height < 65536:
        return None
    return Size(width=width, height=height)


class SpdyChannels:
    """Streams by their `streamtype` header."""

    def __init__(self, link: SpdyLink, protocol: str) -> None:
        self.gone = link.closed
        self._link = link
        self._version = int(protocol[1]) if protocol.startswith("v") else 1
        self._streams: dict[str, Stream] = {}

    async def open(self, wanted: Wanted) -> None:
        """Wait for the streams that the client has to open. Raises ClientGone, TimeoutError."""
        missing = {"error"}
        missing |= {kind for kind in ("stdin", "stdout", "stderr") if getattr(wanted, kind)}
        if wanted.tty:
            missing.discard("stderr")
            if self._version >= 3:
                missing.add("resize")
        async with asyncio.timeout(_OPEN_S):
            while missing:
                stream = await self._link.accept()
                if stream is None:
                    raise ClientGone
                kind = stream.headers.get("streamtype", "")
                if kind not in missing:
                    await stream.reset()
                    continue
                missing.discard(kind)
                self._streams[kind] = stream

    async def stdin(self) -> AsyncIterator[bytes]:
        """Bytes until the client ends its half."""
        if (stream := self._streams.get("stdin")) is not None:
            while data := await stream.read():
                yield data

    async def sizes(self) -> AsyncIterator[Size]:
        """Sizes of the client's terminal."""
        stream = self._streams.get("resize")
        pending = b""
        while stream is not None and (data := await stream.read()):
            pending = (pending + data)[-_MAX_RESIZE:]
            while b"}" in pending:  # one JSON object follows another
                one, _, pending = pending.partition(b"}")
                if (size := parse_size(one + b"}")) is not None:
                    yield size

    async def write(self, data: bytes, *, stderr: bool) -> None:
        """To the client; what it did not ask for is dropped. Raises ClientGone."""
        stream = self._streams.get("stderr" if stderr else "stdout")
        if stream is not None:
            try:
                await stream.write(data)
            except StreamClosed:
                raise ClientGone from None

    async def finish(self, outcome: Outcome) -> None:
        """Tell the outcome and end every stream."""
        text = outcome.status() if self._version >= 4 else outcome.text().encode()
        try:
            if text:
                await self._streams["error"].write(text)
            for stream in self._streams.values():
                await stream.close()
        except StreamClosed:
            pass  # nobody is left to hear it


class WebSocketChannels:
    """Messages whose first byte is the channel; as digits and base64 in the old text protocols."""

    def __init__(self, socket: WebSocket) -> None:
        self.gone = socket.closed
        self._socket = socket
        self._base64 = "base64" in socket.subprotocol
        self._stdin: asyncio.Queue[bytes] = asyncio.Queue(16)
        self._sizes: asyncio.Queue[Size | None] = asyncio.Queue()
        self._stdin_ended = False

    async def open(self, wanted: Wanted) -> None:
        """The first, empty message says that the server is ready."""
        del wanted
        await self._send(STDOUT, b"")

    async def run(self) -> None:
        """Sort what comes until the client leaves."""
        try:
            async for message in self._socket.messages():
                await self._take(message)
        finally:
            await self._end_stdin()
            self._sizes.put_nowait(None)

    async def stdin(self) -> AsyncIterator[bytes]:
        """Bytes until the client ends its half."""
        while data := await self._stdin.get():
            yield data

    async def sizes(self) -> AsyncIterator[Size]:
        """Sizes of the client's terminal."""
        while (size := await self._sizes.get()) is not None:
            yield size

    async def write(self, data: bytes, *, stderr: bool) -> None:
        """To the client. Raises ClientGone."""
        await self._send(STDERR if stderr else STDOUT, data)

    async def finish(self, outcome: Outcome) -> None:
        """Tell the outcome; the server closes the socket afterwards."""
        versioned = self._socket.subprotocol[:2] in {"v4", "v5"}
        text = outcome.status() if versioned else outcome.text().encode()
        if text:
            with contextlib.suppress(ClientGone):
                await self._send(ERROR, text)

    async def _take(self, message: bytes) -> None:
        if not message:
            return
        channel, data = message[0], message[1:]
        if self._base64:
            channel -= ord("0")
            try:
                data = base64.b64decode(data, validate=True)
            except ValueError:
                return
        if channel == STDIN and data and not self._stdin_ended:
            await self._stdin.put(data)
        elif channel == RESIZE and (size := parse_size(data)) is not None:
            self._sizes.put_nowait(size)
        elif channel == CLOSE and data[:1] == bytes([STDIN]):
            await self._end_stdin()

    async def _end_stdin(self) -> None:
        if not self._stdin_ended:
            self._stdin_ended = True
            await self._stdin.put(b"")

    async def _send(self, channel: int, data: bytes) -> None:
        if self._base64:
            message = b"%d" % channel + base64.b64encode(data)
        else:
            message = bytes([channel]) + data
        try:
            await self._socket.send(message, text=self._base64)
        except OSError:
            raise ClientGone from None
