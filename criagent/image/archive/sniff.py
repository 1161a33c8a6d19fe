# SPDX-License-Identifier: Apache-2.0
"""Whether a stream can be an image archive, judged by its first bytes before any is stored."""

from __future__ import annotations

import io

from criagent.base.errors import InvalidRequestError
from criagent.image.tar.decompress import BadLayerError, is_compressed, plain_chunks
from criagent.image.tar.headers import BLOCK, number

START = 256 << 10  # enough bytes: a block of zstd has at most half of it

_OTHERS = {
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"LZIP": "lzip",
}


def check_start(start: bytes) -> None:
    """Raise InvalidRequestError when a stream that begins with `start` is not a tar archive.

    `start` has at least `START` bytes, or the whole stream.
    """
    if not start:
        raise _refused("it is empty")
    for magic, name in _OTHERS.items():
        if start.startswith(magic):
            raise _refused(f"it is compressed with {name}; decompress it, or use gzip or zstd")
    if not is_compressed(start[:4].ljust(4, b"\0")):
        _check_header(start)
        return
    plain = bytearray()
    try:
        for chunk in plain_chunks(io.BytesIO(start), lambda _: None):
            plain += chunk
            if len(plain) >= BLOCK:
                break
    except BadLayerError as exc:
        if len(start) < START or "its compressed data ends too soon" not in str(exc):
            raise _refused(str(exc)) from None
        return  # too little was decoded to decide
    _check_header(bytes(plain[:BLOCK]))


def _check_header(start: bytes) -> None:
    """The checksum of the first tar header, by which file(1) and GNU tar know an archive too."""
    header = start[:BLOCK]
    if len(header) < BLOCK:
        raise _refused("it is shorter than a tar header")
    if not any(header):
        raise _refused("it begins with zeros, like an empty archive or a blank device")
    try:
        recorded = number(header[148:156])
    except BadLayerError:
        recorded = -1
    rest = header[:148] + b" " * 8 + header[156:]
    signed = sum(rest) - 256 * sum(byte > 127 for byte in rest)
    if recorded not in {sum(rest), signed}:
        raise _refused("it does not begin with a tar header")


def _refused(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"not an image archive: {why}")
