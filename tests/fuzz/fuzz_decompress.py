# SPDX-License-Identifier: Apache-2.0
"""Compressed layers: BadLayerError, else what Python's own decoder gives, in bounded pieces."""

from __future__ import annotations

import gzip
import io
import zlib
from random import Random

from backports import zstd

from criagent.image.tar.decompress import BadLayerError, plain_chunks
from tests.fuzz.frame import mutate_bytes

SKIPPABLE = b"\x5a\x2a\x4d\x18\x04\x00\x00\x00skip"


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    if seeds and rnd.random() < 0.2:
        return mutate_bytes(rnd, rnd.choice(seeds), [])
    parts = []
    pack = rnd.choice([gzip.compress, zstd.compress, zlib.compress])
    for _ in range(rnd.randint(1, 5)):
        parts.append(pack(rnd.choice([b"", rnd.randbytes(50), bytes(rnd.choice([1, 5_000_000]))])))  # type: ignore[operator]
        parts.append(rnd.choice([b"", b"", bytes(rnd.randint(1, 2000)), SKIPPABLE]))
    data = b"".join(parts)
    return mutate_bytes(rnd, data, [b"\x1f\x8b\x08", SKIPPABLE]) if rnd.random() < 0.5 else data


def check(data: bytes) -> None:
    seen: list[bytes] = []
    content = 0
    digest = zlib.crc32(b"")
    try:
        for chunk in plain_chunks(io.BytesIO(data), seen.append):
            assert 0 < len(chunk) <= 1 << 20
            content += len(chunk)
            digest = zlib.crc32(chunk, digest)
    except BadLayerError:
        return
    assert b"".join(seen) == data
    if data[:2] == b"\x1f\x8b":
        try:
            plain = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return  # padding and header checks differ; what both take must be equal
        assert (len(plain), zlib.crc32(plain)) == (content, digest)
