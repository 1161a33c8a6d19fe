# SPDX-License-Identifier: Apache-2.0
"""SPDY frames: events do not depend on how the bytes are split, and nothing is raised."""

from __future__ import annotations

from random import Random

from criagent.streaming.transport import spdy
from criagent.streaming.transport.spdy_frames import (
    HeaderEncoder,
    control_frame,
    data_frame,
    number,
)
from tests.fuzz.frame import mutate_bytes

STREAM_IDS = [1, 3, 5, 2, 0, 2**31 - 1]


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    if seeds and rnd.random() < 0.1:
        return mutate_bytes(rnd, rnd.choice(seeds), [])
    out, encoder, opened = bytearray(), HeaderEncoder(), 1
    for _ in range(rnd.randint(1, 60)):
        stream = rnd.choice([opened, *STREAM_IDS])
        match rnd.randrange(8):
            case 0 | 1:
                kind = rnd.choice(["data", "error", "stdin", "x" * 200])
                headers = encoder.encode({"streamtype": kind, "port": "80"})
                out += control_frame(
                    1, number(stream) + number(0) + b"\0\0" + headers, rnd.choice([0, 1, 2])
                )
                opened += 2
            case 2 | 3:
                out += data_frame(
                    stream, rnd.randbytes(rnd.choice([0, 1, 1000])), fin=rnd.random() < 0.2
                )
            case 4:
                out += control_frame(
                    rnd.randrange(12), rnd.randbytes(rnd.choice([0, 4, 8, 12, 99]))
                )
            case 5:
                out += control_frame(9, number(stream) + number(rnd.choice([0, 1, 2**31 - 1])))
            case 6:
                out += control_frame(4, number(1) + number(7) + number(rnd.choice([0, 1, 65536])))
            case _:
                out += rnd.randbytes(rnd.randint(1, 30))
    return mutate_bytes(rnd, bytes(out), []) if rnd.random() < 0.3 else bytes(out)


def check(data: bytes) -> None:
    whole = spdy.SpdyConnection(now=lambda: 0.0)
    events = whole.receive_data(data)
    split, found = spdy.SpdyConnection(now=lambda: 0.0), []
    rnd, at = Random(len(data)), 0
    while at < len(data):
        size = rnd.randint(1, 40)
        found += split.receive_data(data[at : at + size])
        at += size
    assert [repr(event) for event in found] == [repr(event) for event in events]
    for event in events:
        if isinstance(event, spdy.Opened):
            whole.reply(event.stream)
            whole.send_data(event.stream, b"x" * 100_000)
            whole.send_data(event.stream, b"", fin=True)
            whole.reset(event.stream)
    assert len(whole.data_to_send()) < 100_200 * (len(events) + 1) + 50 * len(data)
