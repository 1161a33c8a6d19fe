"""A SPDY/3.1 connection, server's side, sans-IO: bytes in, events out, bytes to send beside them.

Windows are honoured towards a peer that shows that it keeps them (a SETTINGS or WINDOW_UPDATE
frame). The client library of the Kubernetes tools keeps none, and would wait for ever for one that
did not know; TCP holds it back instead.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from criagent.streaming import spdy_frames as frames
from criagent.streaming.spdy_frames import (
    Frame,
    FrameReader,
    HeaderDecoder,
    HeaderEncoder,
    SpdyError,
)

INITIAL_WINDOW = 64 << 10
_SETTING_INITIAL_WINDOW = 7
_MAX_STREAMS = 2048
_MAX_WINDOW = 2**31 - 1
_CHUNK = 32 << 10


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
    """The peer gave a stream up."""

    stream: int


@dataclass(frozen=True, slots=True)
class Window:
    """More may be sent on a stream."""

    stream: int


Event = Opened | Data | Reset | Window


@dataclass(slots=True)
class _Stream:
    window: int
    ended_by_peer: bool = False
    ended_by_us: bool = False
    pending: bytearray = field(default_factory=bytearray)


class SpdyConnection:
    """After a SpdyError only `data_to_send` (a GOAWAY) is left."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._decoder = HeaderDecoder()
        self._encoder = HeaderEncoder()
        self._out = bytearray()
        self._streams: dict[int, _Stream] = {}
        self._last = 0
        self._windows_kept = False
        self._initial_window = INITIAL_WINDOW

    def receive_data(self, data: bytes) -> list[Event]:
        """Events of `data`. Raises SpdyError; the connection is closed then."""
        events: list[Event] = []
        try:
            for frame in self._reader.feed(data):
                events += self._handle(frame)
        except SpdyError:
            self.goaway(1)
            raise
        return events

    def data_to_send(self) -> bytes:
        """What has to be written now."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def reply(self, stream: int) -> None:
        """Accept a stream that was opened."""
        payload = frames.number(stream) + self._encoder.encode({})
        self._out += frames.control_frame(frames.SYN_REPLY, payload)

    def send_data(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Queue bytes of a stream; nothing happens on one that has ended."""
        state = self._streams.get(stream)
        if state is None or state.ended_by_us:
            return
        state.pending += data
        state.ended_by_us = fin
        self._flush(stream, state)

    def unsent(self, stream: int) -> int:
        """Bytes of a stream that its window holds back."""
        state = self._streams.get(stream)
        return 0 if state is None else len(state.pending)

    def acknowledge(self, stream: int, count: int) -> None:
        """The application took `count` bytes; the peer may send as many more."""
        if count and stream in self._streams and not self._streams[stream].ended_by_peer:
            payload = frames.number(stream) + frames.number(count)
            self._out += frames.control_frame(frames.WINDOW_UPDATE, payload)

    def reset(self, stream: int, status: int = frames.RST_CANCEL) -> None:
        """Give a stream up."""
        if self._streams.pop(stream, None) is not None:
            payload = frames.number(stream) + frames.number(status)
            self._out += frames.control_frame(frames.RST_STREAM, payload)

    def goaway(self, status: int = 0) -> None:
        """Announce the end of the connection."""
        payload = frames.number(self._last) + frames.number(status)
        self._out += frames.control_frame(frames.GOAWAY, payload)

    def _handle(self, frame: Frame) -> list[Event]:
        match frame.kind:
            case 0:
                return self._data(frame)
            case frames.SYN_STREAM:
                return self._open(frame)
            case frames.RST_STREAM:
                return [Reset(frame.stream)] if self._streams.pop(frame.stream, None) else []
            case frames.PING if len(frame.payload) == 4:
                self._out += frames.control_frame(frames.PING, frame.payload)
            case frames.HEADERS:
                self._decoder.decode(frame.payload[4:])  # keeps the shared stream in step
            case frames.SETTINGS:
                return self._settings(frame.payload)
            case frames.WINDOW_UPDATE:
                return self._window_update(frame)
            case frames.SYN_REPLY:
                raise SpdyError("a reply to a stream that we never opened")
        return []

    def _open(self, frame: Frame) -> list[Event]:
        if len(frame.payload) < 10:
            raise SpdyError("a short SYN_STREAM frame")
        headers = self._decoder.decode(frame.payload[10:])
        if frame.stream <= self._last or not frame.stream % 2:
            raise SpdyError(f"stream {frame.stream} after {self._last}")
        self._last = frame.stream
        if len(self._streams) >= _MAX_STREAMS:
            payload = frames.number(frame.stream) + frames.number(frames.RST_REFUSED_STREAM)
            self._out += frames.control_frame(frames.RST_STREAM, payload)
            return []
        fin = bool(frame.flags & frames.FLAG_FIN)
        self._streams[frame.stream] = _Stream(self._initial_window, ended_by_peer=fin)
        return [Opened(frame.stream, headers, fin)]

    def _data(self, frame: Frame) -> list[Event]:
        state = self._streams.get(frame.stream)
        if state is None or state.ended_by_peer:
            if frame.stream > self._last:
                raise SpdyError(f"data on stream {frame.stream}, which was never opened")
            return []
        state.ended_by_peer = bool(frame.flags & frames.FLAG_FIN)
        event = Data(frame.stream, frame.payload, state.ended_by_peer)
        self._forget_ended(frame.stream, state)
        return [event]

    def _settings(self, payload: bytes) -> list[Event]:
        count = int.from_bytes(payload[:4], "big")
        if len(payload) != 4 + 8 * count:
            raise SpdyError("a malformed SETTINGS frame")
        for at in range(4, len(payload), 8):
            key, value = struct.unpack_from("!II", payload, at)
            if key & 0xFFFFFF == _SETTING_INITIAL_WINDOW and value <= _MAX_WINDOW:
                self._windows_kept = True
                self._initial_window = value
        return []

    def _window_update(self, frame: Frame) -> list[Event]:
        if len(frame.payload) != 8:
            raise SpdyError("a malformed WINDOW_UPDATE frame")
        self._windows_kept = True
        state = self._streams.get(frame.stream)
        if state is None:
            return []
        state.window += int.from_bytes(frame.payload[4:], "big") & 0x7FFFFFFF
        if state.window > _MAX_WINDOW:
            raise SpdyError("a window of more than 2^31 - 1")
        self._flush(frame.stream, state)
        return [Window(frame.stream)]

    def _flush(self, stream: int, state: _Stream) -> None:
        while state.pending:
            room = state.window if self._windows_kept else len(state.pending)
            size = min(room, len(state.pending), _CHUNK)
            if size <= 0:
                return
            part = bytes(state.pending[:size])
            del state.pending[:size]
            state.window = max(state.window - size, 0)
            last = state.ended_by_us and not state.pending
            self._out += frames.data_frame(stream, part, fin=last)
            if last:
                self._forget_ended(stream, state)
                return
        if state.ended_by_us:
            self._out += frames.data_frame(stream, b"", fin=True)
            self._forget_ended(stream, state)

    def _forget_ended(self, stream: int, state: _Stream) -> None:
        if state.ended_by_peer and state.ended_by_us and not state.pending:
            self._streams.pop(stream, None)
