# SPDX-License-Identifier: Apache-2.0
"""SPDY frames and connections: round trips, any split of the bytes, hostile frames."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criagent.streaming.transport import spdy_frames as frames
from criagent.streaming.transport.spdy import (
    Broken,
    Data,
    Event,
    Opened,
    Reset,
    SpdyConnection,
    Window,
)
from criagent.streaming.transport.spdy_frames import (
    DICTIONARY,
    FrameReader,
    HeaderDecoder,
    HeaderEncoder,
    SpdyError,
    control_frame,
    data_frame,
    number,
)

HEADERS = st.dictionaries(
    st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20),
    st.text(st.characters(codec="latin-1"), max_size=50),
    max_size=8,
)


def syn_stream(
    encoder: HeaderEncoder, stream: int, headers: dict[str, str], flags: int = 0
) -> bytes:
    block = encoder.encode(headers)
    return control_frame(frames.SYN_STREAM, number(stream) + number(0) + b"\0\0" + block, flags)


def conversation() -> bytes:
    encoder = HeaderEncoder()
    return b"".join(
        (
            syn_stream(encoder, 1, {"streamtype": "error"}),
            syn_stream(encoder, 3, {"streamtype": "stdin"}),
            data_frame(3, b"hello"),
            control_frame(frames.PING, number(7)),
            control_frame(frames.SETTINGS, number(1) + number(7) + number(100_000)),
            control_frame(frames.WINDOW_UPDATE, number(3) + number(1000)),
            data_frame(3, b" world", fin=True),
            syn_stream(encoder, 5, {"streamtype": "resize", "x": "y"}, frames.FLAG_FIN),
            control_frame(frames.RST_STREAM, number(1) + number(5)),
        )
    )


EVENTS: list[Event] = [
    Opened(1, {"streamtype": "error"}, False),
    Opened(3, {"streamtype": "stdin"}, False),
    Data(3, b"hello", False),
    Window(3),
    Data(3, b" world", True),
    Opened(5, {"streamtype": "resize", "x": "y"}, True),
    Reset(1),
]


def test_the_dictionary_is_the_protocols() -> None:
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)


@given(st.lists(HEADERS, max_size=5))
def test_header_blocks_share_one_stream(blocks: list[dict[str, str]]) -> None:
    encoder, decoder = HeaderEncoder(), HeaderDecoder()
    for headers in blocks:
        assert decoder.decode(encoder.encode(headers)) == headers


@given(st.lists(st.integers(1, 60), max_size=60))
def test_any_split_of_the_bytes_gives_the_same_events(sizes: list[int]) -> None:
    connection, data, events = SpdyConnection(), conversation(), []
    for size in sizes:
        events += connection.receive_data(data[:size])
        data = data[size:]
    events += connection.receive_data(data)
    assert events == EVENTS
    assert connection.data_to_send() == control_frame(frames.PING, number(7))


@given(st.binary(max_size=300))
def test_hostile_bytes_end_the_connection_or_do_nothing(data: bytes) -> None:
    connection = SpdyConnection()
    if any(isinstance(event, Broken) for event in connection.receive_data(data)):
        assert connection.data_to_send()
        assert connection.receive_data(conversation()) == []


@given(st.binary(min_size=8, max_size=60), st.integers(1, 12))
def test_hostile_payloads_of_every_kind(payload: bytes, kind: int) -> None:
    connection = SpdyConnection()
    events = connection.receive_data(conversation() + control_frame(kind, payload))
    assert events[: len(EVENTS)] == EVENTS
    assert connection.data_to_send()


def test_a_frame_of_sixteen_megabytes_is_refused_by_its_header() -> None:
    with pytest.raises(SpdyError):
        list(FrameReader().feed(struct.pack("!II", 1, 0xFFFFFF)))


def test_a_header_block_bomb_is_refused() -> None:
    plain = number(1) + number(1) + b"a" + number(50_000_000) + bytes(50_000_000)
    packer = zlib.compressobj(zdict=DICTIONARY)
    block = packer.compress(plain) + packer.flush(zlib.Z_SYNC_FLUSH)
    with pytest.raises(SpdyError, match="more than"):
        HeaderDecoder().decode(block)


def test_a_flood_of_streams_is_refused_one_by_one() -> None:
    connection, encoder = SpdyConnection(), HeaderEncoder()
    opened = 0
    for stream in range(1, 8001, 2):
        opened += len(connection.receive_data(syn_stream(encoder, stream, {})))
    assert opened == 2048


RESET = control_frame(frames.RST_STREAM, number(1) + number(5))
FLOODS = {
    "resets": RESET,
    "pings": control_frame(frames.PING, number(7)),
    "settings": control_frame(frames.SETTINGS, number(1) + number(7) + number(100_000)),
    "windows of no stream": control_frame(frames.WINDOW_UPDATE, number(99) + number(1)),
    "unknown frames": control_frame(12, b"x"),
    "goaways": control_frame(frames.GOAWAY, number(1) + number(0)),
    "empty data": data_frame(1, b""),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_million_frames_that_lead_to_nothing_end_the_connection(flood: str) -> None:
    clock = [0.0]
    connection = SpdyConnection(lambda: clock[0])
    connection.receive_data(syn_stream(HeaderEncoder(), 1, {}))
    for _ in range(60):  # an hour of them at a sane rate is fine
        assert connection.receive_data(FLOODS[flood] * 1000) in ([], [Reset(1)])
        connection.data_to_send()
        clock[0] += 60
    taken = 0
    while not (events := connection.receive_data(FLOODS[flood] * 1000)):
        connection.data_to_send()
        taken += 1000
        assert taken < 1_000_000
    assert events == [Broken("a flood of frames without effect")]
    assert taken <= 20_000


def test_streams_opened_and_reset_at_once_end_the_connection() -> None:
    connection, encoder = SpdyConnection(lambda: 0.0), HeaderEncoder()
    stream = 1
    while not any(
        isinstance(event, Broken)
        for event in connection.receive_data(
            syn_stream(encoder, stream, {})
            + control_frame(frames.RST_STREAM, number(stream) + number(5))
        )
    ):
        stream += 2
        assert stream < 100_000


@pytest.mark.parametrize(
    "frame",
    [
        control_frame(frames.WINDOW_UPDATE, number(1) + number(2**31 - 1)),
        control_frame(frames.SYN_STREAM, number(1) + number(0) + b"\0\0"),
        control_frame(frames.SYN_REPLY, number(1)),
        data_frame(2, b"x"),
        data_frame(77, b"x"),
        struct.pack("!II", 1, 0xFFFFFF),
        struct.pack("!II", 1 << 31 | 2 << 16 | 1, 0),
    ],
    ids=["window", "reused id", "reply", "even", "unopened", "length", "version"],
)
def test_what_the_protocol_forbids_ends_the_connection(frame: bytes) -> None:
    connection = SpdyConnection()
    connection.receive_data(syn_stream(HeaderEncoder(), 1, {}))
    (broken,) = connection.receive_data(frame)
    assert isinstance(broken, Broken)
    (goaway,) = FrameReader().feed(connection.data_to_send())
    assert goaway.kind == frames.GOAWAY


def test_windows_hold_back_a_peer_that_keeps_them_and_nobody_else() -> None:
    for keeps in (False, True):
        connection, encoder = SpdyConnection(), HeaderEncoder()
        connection.receive_data(syn_stream(encoder, 1, {}))
        if keeps:
            connection.receive_data(control_frame(frames.WINDOW_UPDATE, number(1) + number(1)))
        connection.send_data(1, bytes(200_000))
        assert connection.unsent(1) == (200_000 - 65_537 if keeps else 0)
    connection.receive_data(control_frame(frames.WINDOW_UPDATE, number(1) + number(200_000)))  # type: ignore[possibly-undefined]
    assert connection.unsent(1) == 0


def test_an_end_after_held_back_bytes_comes_with_the_last_of_them() -> None:
    connection, encoder = SpdyConnection(), HeaderEncoder()
    connection.receive_data(syn_stream(encoder, 1, {}))
    connection.receive_data(control_frame(frames.WINDOW_UPDATE, number(1) + number(1)))
    connection.send_data(1, bytes(70_000), fin=True)
    first = list(FrameReader().feed(connection.data_to_send()))
    assert not any(frame.flags for frame in first)
    connection.receive_data(control_frame(frames.WINDOW_UPDATE, number(1) + number(70_000)))
    last = list(FrameReader().feed(connection.data_to_send()))
    assert last[-1].flags == frames.FLAG_FIN
    assert sum(len(frame.payload) for frame in (*first, *last)) == 70_000
