# SPDX-License-Identifier: Apache-2.0
"""Codecs of the streaming server: any split of the bytes says the same; what goes in comes out."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from criagent.runtime.exec.plan import Size
from criagent.streaming.outcome import Outcome, SizeParser
from criagent.streaming.port_forward import port_number
from criagent.streaming.transport import spdy_frames as frames
from criagent.streaming.transport import websocket
from criagent.streaming.transport.channel_codec import ChannelCodec, ChannelError, Message
from criagent.streaming.transport.inbox import Inbox
from criagent.streaming.transport.pace import Pace, Turn
from criagent.streaming.transport.pace import pieces as pace_pieces
from criagent.streaming.transport.spdy import Event, SpdyConnection
from criagent.streaming.transport.spdy_frames import (
    FrameReader,
    HeaderEncoder,
    control_frame,
    number,
)
from criagent.streaming.transport.wire import Hangups, Wire
from criagent.streaming.upgrade import Refusal

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "")
SIZES = st.lists(st.integers(1, 40), max_size=40)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    found = []
    for size in sizes:
        found.append(data[:size])
        data = data[size:]
    return [*found, data]


@given(st.sampled_from(PROTOCOLS), st.integers(0, 200), st.binary(max_size=200))
def test_channel_messages_come_out_as_they_went_in(
    protocol: str, channel: int, data: bytes
) -> None:
    codec = ChannelCodec(protocol)
    assert codec.decode(codec.encode(channel, data)) == Message(channel, data)


@given(st.sampled_from(PROTOCOLS), st.binary(max_size=60))
def test_any_message_is_taken_or_refused(protocol: str, message: bytes) -> None:
    codec = ChannelCodec(protocol)
    try:
        found = codec.decode(message)
    except ChannelError:
        assert codec.text
    else:
        assert (found is None) == (message == b"")


@pytest.mark.parametrize("message", [b"0not base64!", b"0YQ", b"\x00YQ==", b"/YQ=="])
def test_broken_text_messages_are_refused(message: bytes) -> None:
    with pytest.raises(ChannelError):
        ChannelCodec("base64.channel.k8s.io").decode(message)


def test_only_v5_half_closes() -> None:
    for protocol, closed in (("v5.channel.k8s.io", 0), ("v4.channel.k8s.io", None), ("", None)):
        codec = ChannelCodec(protocol)
        message = codec.decode(b"\xff\x00")
        assert message is not None
        assert codec.closed(message) == closed
    assert ChannelCodec(PROTOCOLS[0]).closed(Message(255, b"")) is None


SIZE = st.builds(Size, width=st.integers(1, 65535), height=st.integers(1, 65535))
NOISE = st.binary(max_size=20).map(lambda data: data.replace(b"{", b"").replace(b"}", b"") + b"}")


@given(st.lists(st.one_of(SIZE, NOISE), max_size=8), SIZES)
def test_sizes_are_found_however_the_bytes_are_split(
    wanted: list[Size | bytes], sizes: list[int]
) -> None:
    data = b"".join(
        one
        if isinstance(one, bytes)
        else json.dumps({"Width": one.width, "Height": one.height}).encode()
        for one in wanted
    )
    parser = SizeParser()
    found = [parser.feed(piece) for piece in pieces(data, sizes)]
    told = [one for one in wanted if isinstance(one, Size)]
    assert [size for size in found if size is not None][-1:] == told[-1:]
    assert all(size in (None, *told) for size in found)


@given(st.binary(max_size=4000), SIZES)
def test_garbage_of_a_terminal_says_the_same_however_split(data: bytes, sizes: list[int]) -> None:
    data = data + b"[" * 2000 + b'}{"Width":3,"Height":4}'
    parser = SizeParser()
    found = [size for piece in pieces(data, sizes) if (size := parser.feed(piece)) is not None]
    assert found[-1] == SizeParser().feed(data) == Size(width=3, height=4)


def test_of_a_flood_of_sizes_the_newest_is_told_and_few_are_looked_at() -> None:
    flood = b"".join(b'{"Width":%d,"Height":4}' % width for width in range(1, 60_000))
    assert SizeParser().feed(flood) == Size(width=59_999, height=4)
    assert SizeParser().feed(b'{"Width":1,"Height":1}' + b"}" * 100_000) is None


class Clock:
    """A clock that only work and rests move on."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.rested: list[float] = []

    def now(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.rested.append(seconds)


async def worked(clock: Clock, turn: Turn, seconds: float) -> None:
    with turn:
        clock.now_s += seconds
    await turn.over()


async def test_a_connection_rests_three_times_as_long_as_it_works() -> None:
    clock = Clock()
    turn = Turn(Pace(clock.now, clock.sleep))
    await worked(clock, turn, 0.004)
    assert clock.rested == [pytest.approx(0.012)]


async def test_connections_that_flood_share_one_quarter_of_the_time() -> None:
    clock = Clock()
    pace = Pace(clock.now, clock.sleep)
    for _ in range(10):
        await worked(clock, Turn(pace), 0.004)  # all at once: nobody has rested yet
    assert clock.rested[-1] == pytest.approx(10 * 4 * 0.004 - 10 * 0.004)


async def test_a_connection_that_works_little_rests_as_rarely() -> None:
    clock = Clock()
    pace = Pace(clock.now, clock.sleep)
    await worked(clock, Turn(pace), 0.5)
    typist = Turn(pace)
    for _ in range(9):
        await worked(clock, typist, 0.0001)
    assert len(clock.rested) == 1


async def test_a_rest_gives_the_loop_to_others_also_when_none_is_due() -> None:
    turn = Turn(Pace())
    order: list[str] = []
    other = asyncio.create_task(noted(order))
    with turn:
        until = time.perf_counter() + 0.002
        while time.perf_counter() < until:
            pass
    await turn.over()
    assert order == ["other"]
    await other


async def noted(order: list[str]) -> None:
    order.append("other")


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 2049, 20_000])
def test_pieces_are_all_of_it(size: int) -> None:
    data = bytes(at % 256 for at in range(size))
    found = list(pace_pieces(data))
    assert b"".join(found) == data
    assert max(map(len, found)) <= 2048


@given(st.integers(0, 255), st.text(max_size=60))
def test_outcomes_are_statuses(code: int, failure: str) -> None:
    status = json.loads(Outcome(code=code, failure=failure).status())
    assert status["status"] == ("Failure" if code or failure else "Success")
    if failure:
        assert (status["reason"], status["message"]) == ("InternalError", failure)
    elif code:
        assert status["details"]["causes"] == [{"reason": "ExitCode", "message": str(code)}]


@given(st.binary(max_size=400), SIZES)
def test_garbage_says_the_same_however_split(data: bytes, sizes: list[int]) -> None:
    start = control_frame(
        frames.SYN_STREAM, number(1) + number(0) + b"\0\0" + HeaderEncoder().encode({"a": "b"})
    )
    one, other = SpdyConnection(lambda: 0.0), SpdyConnection(lambda: 0.0)
    found: list[Event] = []
    for piece in pieces(start + data, sizes):
        found += one.receive_data(piece)
    assert found == other.receive_data(start + data)
    assert one.data_to_send() == other.data_to_send()


FRAMES = st.lists(
    st.tuples(st.integers(1, 2**31 - 1), st.binary(max_size=100), st.booleans()), max_size=10
)


@given(FRAMES, SIZES)
def test_data_frames_come_out_as_they_went_in(
    wanted: list[tuple[int, bytes, bool]], sizes: list[int]
) -> None:
    data = b"".join(frames.data_frame(stream, text, fin=fin) for stream, text, fin in wanted)
    reader = FrameReader()
    found = [frame for piece in pieces(data, sizes) for frame in reader.feed(piece)]
    assert [(f.stream, f.payload, bool(f.flags)) for f in found] == wanted


@given(st.text(max_size=10))
def test_ports_are_numbers_or_none(text: str) -> None:
    assert port_number(text) == -1 or str(port_number(text)) == (text.lstrip("0") or "0")


async def messages_of(wanted: list[bytes], sizes: list[int]) -> list[bytes]:
    """What a server gets over a real socket of messages sent in pieces."""
    ours, theirs = socket.socketpair()
    hangups = Hangups()
    reader, writer = await asyncio.open_connection(sock=ours)
    wire = Wire(reader, writer, hangups, 60, Turn(Pace()))
    client = ClientProtocol(parse_uri("ws://node/"))
    client.send_request(client.connect())
    head = b"".join(client.data_to_send())
    server = await websocket.accept(head, (), wire)
    assert server is not None
    client.receive_data(theirs.recv(4096))
    for message in wanted:
        client.send_binary(message)
    client.send_close(1000)
    for piece in pieces(b"".join(client.data_to_send()), sizes):
        theirs.sendall(piece)
        await asyncio.sleep(0)
    found = [message async for message in server.messages()]
    theirs.close()
    await wire.close()
    hangups.close()
    return found


@given(st.lists(st.binary(max_size=300), max_size=6), SIZES)
def test_websocket_messages_are_whole_however_split(wanted: list[bytes], sizes: list[int]) -> None:
    assert asyncio.run(messages_of(wanted, sizes)) == wanted


async def test_an_inbox_is_bounded_and_ends_once() -> None:
    inbox = Inbox()
    await asyncio.wait_for(inbox.put(bytes(256 << 10)), 1)
    waiting = asyncio.create_task(inbox.put(b"more"))
    await asyncio.sleep(0)
    assert inbox.full
    assert not waiting.done()
    assert (await inbox.get())[-5:] == b"\0more"
    await waiting
    inbox.end()
    await inbox.put(b"late")
    assert await inbox.get() == b""
    inbox.abandon()
    with pytest.raises(EOFError):
        await inbox.put(b"x")


def test_refusals_say_what_is_wrong() -> None:
    response, body = Refusal(404, "gone").response()
    assert (response.status_code, bytes(body.data)) == (404, b"gone\n")
