# SPDX-License-Identifier: Apache-2.0
"""What is no archive is refused by its first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from criagent.base.errors import InvalidRequestError
from criagent.image.archive.sniff import START, check_start


def archive(format_: int = tarfile.PAX_FORMAT, content: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as tar:
        entry = tarfile.TarInfo("manifest.json")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def skippable(data: bytes) -> bytes:
    """As pzstd begins."""
    return b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd" + zstd.compress(data)


NOISE = os.urandom(4 * START)
PACKED: list[Callable[[bytes], bytes]] = [bytes, gzip.compress, zstd.compress, skippable]


@pytest.mark.parametrize("pack", PACKED)
@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_pass(pack: Callable[[bytes], bytes], format_: int) -> None:
    check_start(pack(archive(format_)))
    check_start(pack(archive(format_, NOISE))[:START])


def test_old_headers_pass() -> None:
    """Before POSIX there was no magic, and Sun's checksums were signed."""
    header = bytearray(tarfile.TarInfo("\xe9").tobuf(tarfile.USTAR_FORMAT, "latin-1"))
    header[257:265] = bytes(8)
    header[148:156] = b" " * 8
    total = sum(header)
    for recorded in (total, total - 256):
        header[148:156] = b"%06o\0 " % recorded
        check_start(bytes(header))


REFUSED = {
    "nothing": (b"", "it is empty"),
    "one byte": (b"x", "shorter than a tar header"),
    "zeros": (bytes(START), "begins with zeros"),
    "an empty archive": (bytes(10240), "begins with zeros"),
    "text": (b"y\n" * START, "does not begin with a tar header"),
    "noise": (b"\x7fELF" + NOISE, "does not begin with a tar header"),
    "JSON": (b'{"schemaVersion":2}' * 100, "does not begin with a tar header"),
    "gzip of text": (gzip.compress(b"text" * 1000), "does not begin with a tar header"),
    "gzip of zeros": (gzip.compress(bytes(1 << 20)), "begins with zeros"),
    "gzip of little": (gzip.compress(b"x"), "shorter than a tar header"),
    "zstd of noise": (zstd.compress(NOISE), "does not begin with a tar header"),
    "gzip of gzip": (gzip.compress(gzip.compress(archive(content=NOISE))), "does not begin"),
    "damaged gzip": (b"\x1f\x8b" + b"x" * START, "damaged"),
    "cut gzip": (gzip.compress(archive())[:20], "ends too soon"),
    "gzip magic alone": (b"\x1f\x8b", "ends too soon"),
    "zstd magic alone": (b"\x28\xb5\x2f\xfd", "ends too soon"),
    "xz": (lzma.compress(archive()), "xz; decompress it"),
    "bzip2": (bz2.compress(archive()), "bzip2; decompress it"),
    "zip": (b"PK\x03\x04" + bytes(600), "zip; decompress it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_refused_with_the_reason(name: str) -> None:
    start, why = REFUSED[name]
    with pytest.raises(InvalidRequestError, match=why):
        check_start(start)


@given(st.binary(max_size=600), st.sampled_from(PACKED))
def test_any_bytes_are_judged(data: bytes, pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(InvalidRequestError):  # a right checksum by chance is out of reach
        check_start(pack(data))
