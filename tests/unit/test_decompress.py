# SPDX-License-Identifier: Apache-2.0
"""Decompression: every format that layers come in, in bounded pieces, or the documented error."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Callable

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from criagent.image.tar.decompress import BadLayerError, LayerStream, is_compressed, plain_chunks

SKIPPABLE = b"\x5a\x2a\x4d\x18\x04\x00\x00\x00skip"
PLAIN = b"".join(hashlib.sha256(b"%d" % n).digest() * (n % 40) for n in range(2000))
BIG = bytes(64 << 20)


def plain(packed: bytes) -> bytes:
    seen = hashlib.sha256()
    content = b"".join(plain_chunks(io.BytesIO(packed), seen.update))
    assert seen.digest() == hashlib.sha256(packed).digest()
    return content


HALF = len(PLAIN) // 2
FORMS = {
    "plain": PLAIN,
    "gzip": gzip.compress(PLAIN),
    "zstd": zstd.compress(PLAIN),
    "two members": gzip.compress(PLAIN[:HALF]) + gzip.compress(PLAIN[HALF:]),
    "two frames": zstd.compress(PLAIN[:HALF]) + zstd.compress(PLAIN[HALF:]),
    "empty members": gzip.compress(b"") + gzip.compress(PLAIN) + gzip.compress(b""),
    "padded gzip": gzip.compress(PLAIN) + bytes(100),
    "long padding": gzip.compress(PLAIN) + bytes(1 << 20),
    "padding between": gzip.compress(PLAIN[:HALF]) + bytes(10) + gzip.compress(PLAIN[HALF:]),
    "skippable first": SKIPPABLE + zstd.compress(PLAIN),
    "skippable last": zstd.compress(PLAIN) + SKIPPABLE,
    "skippable between": zstd.compress(PLAIN[:HALF]) + SKIPPABLE + zstd.compress(PLAIN[HALF:]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_content(form: str) -> None:
    assert plain(FORMS[form]) == PLAIN


@pytest.mark.parametrize("content", [b"", b"\x1f", b"\x28\xb5", b"\x28\xb5\x2f\xfe", b"x"])
def test_what_has_no_magic_number_is_plain(content: bytes) -> None:
    assert plain(content) == content
    assert not is_compressed(content[:4])


@pytest.mark.parametrize("form", ["gzip", "zstd", "two members", "two frames", "skippable first"])
def test_a_cut_is_noticed(form: str) -> None:
    packed = FORMS[form]
    for cut in (5, len(packed) // 3, len(packed) - 1):
        with pytest.raises(BadLayerError):
            plain(packed[:cut])


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_rubbish_after_the_end_is_refused(form: str) -> None:
    with pytest.raises(BadLayerError):
        plain(FORMS[form] + b"rubbish that is long enough for a header")


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
def test_a_bomb_comes_in_bounded_pieces(pack: object) -> None:
    packed = pack(BIG)  # type: ignore[operator]
    assert len(packed) < 1 << 18  # one read
    sizes = [len(chunk) for chunk in plain_chunks(io.BytesIO(packed), lambda _: None)]
    assert max(sizes) <= 1 << 20
    assert sum(sizes) == len(BIG)


@given(st.binary(max_size=3000), st.sampled_from([gzip.compress, zstd.compress, bytes]))
def test_anything_packed_comes_back(content: bytes, pack: object) -> None:
    if pack is bytes and (is_compressed(content[:4]) or content.startswith((b"\xfd7zXZ", b"BZh9"))):
        return
    assert plain(pack(content)) == content  # type: ignore[operator]


@given(
    st.sampled_from([gzip.compress(PLAIN[:5000]), zstd.compress(PLAIN[:5000])]),
    st.integers(4, 400),
    st.binary(min_size=1, max_size=8),
)
def test_damage_gives_only_the_error(packed: bytes, at: int, noise: bytes) -> None:
    with contextlib.suppress(BadLayerError):
        plain(packed[:at] + noise + packed[at + len(noise) :])


def test_a_stream_gives_exact_reads_and_both_hashes() -> None:
    packed = FORMS["gzip"]
    stream = LayerStream(io.BytesIO(packed))
    assert stream.read(0) == b""
    assert stream.read(513) == PLAIN[:513]
    assert b"".join(stream.pieces(100_000)) == PLAIN[513:100_513]
    stream.skip(1000)
    assert stream.read_bytes == 101_513
    assert stream.read(10) == PLAIN[101_513:101_523]
    stream.drain()
    assert stream.read(10) == b""
    with pytest.raises(BadLayerError, match="ends within"):
        stream.skip(1)
    stream.close()
    assert stream.plain.digest() == hashlib.sha256(PLAIN).digest()
    assert stream.compressed.digest() == hashlib.sha256(packed).digest()


@pytest.mark.parametrize("use", ["read", "skip", "drain"])
def test_what_is_not_content_is_limited(use: str) -> None:
    """A few kilobytes of zstd can hold hours of zeros."""
    stream = LayerStream(io.BytesIO(zstd.compress(BIG)), max_overhead=1 << 20)
    assert sum(len(piece) for piece in stream.pieces(32 << 20)) == 32 << 20
    uses = {
        "read": lambda: stream.read(2 << 20),
        "skip": lambda: stream.skip(2 << 20),
        "drain": stream.drain,
    }
    with pytest.raises(BadLayerError, match="not file content"):
        uses[use]()
    stream.close()


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
@pytest.mark.parametrize("size", [0, 1, 20_000, 300_000])
def test_many_members_follow_one_another(pack: Callable[[bytes], bytes], size: int) -> None:
    content = os.urandom(size)
    member = pack(content)
    count = 400_000 // len(member)
    assert plain((member + b"\0") * count) == content * count


@pytest.mark.parametrize("pack", [lzma.compress, bz2.compress])
def test_a_format_that_layers_do_not_have_is_named(pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BadLayerError, match=r"compressed with (xz|bzip2), which is not"):
        plain(pack(PLAIN))


def test_a_streams_damage_is_raised_where_it_is_read() -> None:
    stream = LayerStream(io.BytesIO(FORMS["gzip"][:-5]))
    with pytest.raises(BadLayerError, match="too soon"):
        stream.drain()
    stream.close()


def test_an_unread_stream_closes() -> None:
    stream = LayerStream(io.BytesIO(gzip.compress(BIG, 1)))
    assert stream.read(1) == b"\0"
    stream.close()


def test_a_failing_file_fails_the_read() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "broken disk")

    stream = LayerStream(Broken())
    with pytest.raises(OSError, match="broken disk"):
        stream.read(1)
    stream.close()


def test_raw_deflate_is_no_layer_format() -> None:
    assert plain(zlib.compress(b"x")) == zlib.compress(b"x")
