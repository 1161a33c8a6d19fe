# SPDX-License-Identifier: Apache-2.0
"""tar headers: BadLayerError, else members whose facts are within what the kernel takes."""

from __future__ import annotations

import io
from random import Random

from criagent.image.tar import headers as tar_headers
from criagent.image.tar.decompress import BadLayerError, LayerStream
from tests.fuzz.frame import mutate_bytes
from tests.fuzz.tars import hostile, sealed

TOKENS = [
    b"ustar\0" + b"00", b"ustar  \0", b"\x80" + b"\0" * 7, b"\xff" * 8, b"7777777\0", b"-1",
    b"5 a=\n",
    b"12 path=../\n", b"GNU.sparse.map=0,4", b"\0" * 512,
]  # fmt: skip


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    data = hostile(rnd, tough=0.5) if not seeds or rnd.random() < 0.8 else rnd.choice(seeds)
    if rnd.random() < 0.7:
        data = mutate_bytes(rnd, data, TOKENS)
    return sealed(data) if rnd.random() < 0.8 else data


def check(data: bytes) -> None:
    stream = LayerStream(io.BytesIO(data))
    try:
        for entry in tar_headers.entries(stream):
            assert 0 <= entry.size <= 1 << 46
            assert 0 <= entry.uid < 2**32 - 1
            assert 0 <= entry.gid < 2**32 - 1
            assert 0 <= entry.mode <= 0o7777
            assert 0 <= entry.major < 1 << 12
            assert 0 <= entry.minor < 1 << 20
            assert b"\0" not in entry.name + entry.link
            assert sum(length for _, length in entry.sparse or ()) <= entry.size
    except BadLayerError as exc:
        assert len(str(exc)) < 2000
    finally:
        stream.close()
