# SPDX-License-Identifier: Apache-2.0
"""A SPDY/3.1 connection, server side, sans-IO: bytes in, events out, and bytes to send.

Flow control applies to peers that use it (that sent a SETTINGS or WINDOW_UPDATE frame). The client
library of the Kubernetes tools does not, and would wait for ever on a server that insists; TCP
slows it down instead.

Frames without effect (pings, resets, settings, bytes for ended streams) are accepted at a bounded
rate: a flood of them would cost more than it is worth (CVE-2023-44487).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from criagent.streaming.transport import spdy_frames as frames
from criagent.streaming.transport.spdy_frames import (
    Frame,
    FrameReader,
    HeaderDecoder,
    HeaderEncoder,
    SpdyError,
)

INITIAL_WINDOW = 64 << 10
IDLE_BURST = 20_000  # frames without effect, in one burst
IDLE_RATE = 1_000  # and per second, in the long run
MAX_STREAMS = 2048
_SETTING_INITIAL_WINDOW = 7
_MAX_WINDOW = 2**31 - 1
_CHUNK = 64 << 10


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer opened a stream."""

    stream: int
    headers: dict[str, str]
    fin: bool


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of a stream; `fin`: its last ones."""

    stream: int
    data: bytes
    fin: bool


@dataclass(frozen=True, slots=True)
class Reset:
    """The peer reset a stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class Window:
    """More may be sent on a stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class Broken:
    """The peer broke the protocol or a limit. The last event; a GOAWAY remains to be sent."""

    reason: str


Event = Opened | Data | Reset | Window | Broken


@dataclass(slots=True)
class _Stream:
    window: int
    ended_by_peer: bool = False
    ended_by_us: bool = False
    pending: bytearray = field(default_factory=bytearray)


class SpdyConnection:
    """`now` returns seconds of a monotonic clock."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._reader = FrameReader()
        self._decoder = HeaderDecoder()
        self._encoder = HeaderEncoder()
        self._out: list[bytes] = []
        self._streams: dict[int, _Stream] = {}
        self._last = 0
        self._windows_kept = False
        self._initial_window = INITIAL_WINDOW
        self._broken = False
        self._now = now
        self._idle_left = float(IDLE_BURST)
        self._idle_since = now()

    def receive_data(self, data: bytes) -> list[Event]:
        """Events of `data`, the same however the bytes are split; none after Broken."""
        events: list[Event] = []
        if self._broken:
            return events
        try:
            for frame in self._reader.feed(data):
                self._handle(frame, events)
        except SpdyError as error:
            self._broken = True
            self.goaway(1)
            events.append(Broken(str(error)))
        return events

    def data_to_send(self) -> bytes:
        """The bytes to write now."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def reply(self, stream: int) -> None:
        """Accept a stream that was opened."""
        payload = frames.number(stream) + self._encoder.encode({})
        self._out.append(frames.control_frame(frames.SYN_REPLY, payload))

    def send_data(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Queue bytes of a stream; no effect on a stream that has ended."""
        state = self._streams.get(stream)
        if state is None or state.ended_by_us:
            return
        state.ended_by_us = fin
        if self._windows_kept:
            state.pending += data
            self._flush(stream, state)
            return
        for at in range(0, len(data), _CHUNK):
            part = data[at : at + _CHUNK]
            self._out.append(frames.data_frame(stream, part, fin=fin and at + _CHUNK >= len(data)))
        if fin and not data:
            self._out.append(frames.data_frame(stream, b"", fin=True))
        state.window = max(state.window - len(data), 0)
        self._forget_ended(stream, state)

    def unsent(self, stream: int) -> int:
        """The number of bytes of a stream that its window holds back."""
        state = self._streams.get(stream)
        return 0 if state is None else len(state.pending)

    def acknowledge(self, stream: int, count: int) -> None:
        """The application took `count` bytes, so the peer may send as many more."""
        if count and stream in self._streams and not self._streams[stream].ended_by_peer:
            payload = frames.number(stream) + frames.number(count)
            self._out.append(frames.control_frame(frames.WINDOW_UPDATE, payload))

    def reset(self, stream: int, status: int = frames.RST_CANCEL) -> None:
        """Reset a stream."""
        if self._streams.pop(stream, None) is not None:
            self._reset_frame(stream, status)

    def heartbeat(self) -> None:
        """Send a frame that a live peer ignores and a dead peer's kernel answers by a reset."""
        self._out.append(frames.control_frame(frames.SETTINGS, frames.number(0)))

    def goaway(self, status: int = 0) -> None:
        """Announce the end of the connection."""
        payload = frames.number(self._last) + frames.number(status)
        self._out.append(frames.control_frame(frames.GOAWAY, payload))

    def _handle(self, frame: Frame, events: list[Event]) -> None:
        match frame.kind:
            case 0:
                self._data(frame, events)
            case frames.SYN_STREAM:
                self._open(frame, events)
            case frames.WINDOW_UPDATE:
                self._window_update(frame, events)
            case frames.SYN_REPLY:
                raise SpdyError("a reply to an unknown stream")
            case _:
                self._idle()
                self._control(frame, events)

    def _control(self, frame: Frame, events: list[Event]) -> None:
        match frame.kind:
            case frames.RST_STREAM:
                if self._streams.pop(frame.stream, None) is not None:
                    events.append(Reset(frame.stream))
            case frames.PING if len(frame.payload) == 4:
                self._out.append(frames.control_frame(frames.PING, frame.payload))
            case frames.HEADERS:
                self._decoder.decode(frame.payload[4:])  # keeps the shared zlib stream in step
            case frames.SETTINGS:
                self._settings(frame.payload)

    def _idle(self) -> None:
        """Count a frame without effect."""
        self._idle_left -= 1
        if self._idle_left >= 0:
            return
        now = self._now()
        earned = (now - self._idle_since) * IDLE_RATE
        self._idle_since = now
        self._idle_left = min(self._idle_left + earned, IDLE_BURST)
        if self._idle_left < 0:
            raise SpdyError("a flood of frames without effect")

    def _open(self, frame: Frame, events: list[Event]) -> None:
        if len(frame.payload) < 10:
            raise SpdyError("a short SYN_STREAM frame")
        headers = self._decoder.decode(frame.payload[10:])
        if frame.stream <= self._last or not frame.stream % 2:
            raise SpdyError(f"stream {frame.stream} after {self._last}")
        self._last = frame.stream
        if len(self._streams) >= MAX_STREAMS:
            self._idle()
            self._reset_frame(frame.stream, frames.RST_REFUSED_STREAM)
            return
        fin = bool(frame.flags & frames.FLAG_FIN)
        self._streams[frame.stream] = _Stream(self._initial_window, ended_by_peer=fin)
        events.append(Opened(frame.stream, headers, fin))

    def _data(self, frame: Frame, events: list[Event]) -> None:
        state = self._streams.get(frame.stream)
        fin = bool(frame.flags & frames.FLAG_FIN)
        if state is None or state.ended_by_peer:
            if frame.stream > self._last or not frame.stream % 2:
                raise SpdyError(f"data on stream {frame.stream}, which was never opened")
            self._idle()
            return
        if not frame.payload and not fin:
            self._idle()
            return
        state.ended_by_peer = fin
        events.append(Data(frame.stream, frame.payload, fin))
        self._forget_ended(frame.stream, state)

    def _settings(self, payload: bytes) -> None:
        count = int.from_bytes(payload[:4], "big")
        if len(payload) != 4 + 8 * count:
            raise SpdyError("a malformed SETTINGS frame")
        for at in range(4, len(payload), 8):
            key, value = struct.unpack_from("!II", payload, at)
            if key & 0xFFFFFF == _SETTING_INITIAL_WINDOW and value <= _MAX_WINDOW:
                self._windows_kept = True
                self._initial_window = value

    def _window_update(self, frame: Frame, events: list[Event]) -> None:
        if len(frame.payload) != 8:
            raise SpdyError("a malformed WINDOW_UPDATE frame")
        more = int.from_bytes(frame.payload[4:], "big") & 0x7FFFFFFF
        state = self._streams.get(frame.stream)
        self._windows_kept = True
        if state is None or not more:
            self._idle()
            return
        state.window += more
        if state.window > _MAX_WINDOW:
            raise SpdyError("a window of more than 2^31 - 1")
        self._flush(frame.stream, state)
        events.append(Window(frame.stream))

    def _flush(self, stream: int, state: _Stream) -> None:
        while state.pending:
            size = min(state.window, len(state.pending), _CHUNK)
            if size <= 0:
                return
            part = bytes(state.pending[:size])
            del state.pending[:size]
            state.window -= size
            last = state.ended_by_us and not state.pending
            self._out.append(frames.data_frame(stream, part, fin=last))
            if last:
                self._forget_ended(stream, state)
                return
        if state.ended_by_us:
            self._out.append(frames.data_frame(stream, b"", fin=True))
            self._forget_ended(stream, state)

    def _reset_frame(self, stream: int, status: int) -> None:
        payload = frames.number(stream) + frames.number(status)
        self._out.append(frames.control_frame(frames.RST_STREAM, payload))

    def _forget_ended(self, stream: int, state: _Stream) -> None:
        if state.ended_by_peer and state.ended_by_us and not state.pending:
            self._streams.pop(stream, None)
