# SPDX-License-Identifier: Apache-2.0
"""WebSocket: a handshake and frames in any split give the same messages, within the limits."""

from __future__ import annotations

import asyncio
import struct
from random import Random

from criagent.streaming.transport import websocket
from criagent.streaming.transport.channel_codec import ChannelCodec, ChannelError
from criagent.streaming.transport.pace import Pace, Turn
from tests.fuzz.frame import mutate_bytes

PROTOCOLS = ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"]
HEAD = (
    b"GET /exec/x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: %s\r\n\r\n"
)
TOKENS = [b"\r\n", b": ", b"Upgrade", b"SPDY/3.1+portforward.k8s.io", b",", b"\xff", b"\0"]


class MemoryWire:
    """A connection of bytes that are all there."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.gone = asyncio.Event()
        self.turn = Turn(Pace())
        self.pieces = pieces
        self.written = 0

    async def read(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    async def write(self, data: bytes) -> None:
        self.written += len(data)


def frame_of(rnd: Random) -> bytes:
    opcode, fin = rnd.choice([0, 1, 2, 2, 2, 8, 9, 10, 3]), rnd.choice([0x80, 0x80, 0, 0x40])
    data = rnd.choice([b"", b"\0", b"0YQ==", b"\xff\1", rnd.randbytes(rnd.choice([5, 130, 70000]))])
    length = rnd.choice([len(data)] * 20 + [2**63, 2**31])
    head = bytes([fin | opcode])
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 1 << 16:
        head += bytes([0x80 | 126]) + struct.pack("!H", length)
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", length)
    mask = rnd.randbytes(4)
    return head + mask + bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    if seeds and rnd.random() < 0.1:
        return mutate_bytes(rnd, rnd.choice(seeds), TOKENS)
    head = HEAD % rnd.choice(PROTOCOLS).encode()
    if rnd.random() < 0.2:
        head = mutate_bytes(rnd, head, TOKENS)
    frames = b"".join(frame_of(rnd) for _ in range(rnd.randint(0, 20)))
    return head + (mutate_bytes(rnd, frames, []) if rnd.random() < 0.2 else frames)


def check(data: bytes) -> None:
    head, end, frames = data.partition(b"\r\n\r\n")
    rnd = Random(len(data))
    pieces, at = [], 0
    while at < len(frames):
        size = rnd.randint(1, 3000)
        pieces.append(frames[at : at + size])
        at += size
    whole = asyncio.run(_messages(head + end, [frames] if frames else []))
    split = asyncio.run(_messages(head + end, pieces))
    assert whole == split


async def _messages(head: bytes, pieces: list[bytes]) -> list[bytes]:
    wire = MemoryWire(pieces)
    size = len(head) + sum(map(len, pieces))
    socket = await websocket.accept(head, PROTOCOLS, wire)  # type: ignore[arg-type]
    if socket is None:
        return []
    codec = ChannelCodec(socket.subprotocol)
    found = []
    async for message in socket.messages():
        found.append(message)
        try:
            codec.decode(message)
        except ChannelError as exc:
            assert len(str(exc)) < 500
    assert socket.closed.is_set()
    assert wire.written < 10_000 + 2 * size
    return found
