# SPDX-License-Identifier: Apache-2.0
"""Layer bytes, decompressed and hashed on both sides in one pass. For the unpack worker.

gzip members and zstd frames may follow one another (eStargz, pzstd), so each decoder starts again
on the rest of the last one. A decoding thread runs ahead: hashing, inflating and writing release
the interpreter lock.
"""

from __future__ import annotations

import functools
import hashlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import IO, Protocol

_READ = 1 << 18
_SMALL = 1 << 14  # fed to a new member: what it does not take is copied once per member
_CHUNK = 1 << 20  # most that is decompressed at once: a bomb makes a thousand times its input
_QUEUED = 16  # chunks
_MAX_MEMBERS = 10_000_000  # eStargz has two for each of the archive's
MAX_OVERHEAD = 8 << 30  # bytes of a layer that are not file content: enough for 4 million files

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte 0x5?; pzstd begins with such a frame
_FOREIGN = {b"\xfd7zXZ\0": "xz", b"BZh91AY&SY": "bzip2"}


class BadLayerError(Exception):
    """The layer is malformed, or does not match its digests."""


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


@functools.cache
def _gzip() -> Callable[[], _Decoder]:
    try:
        from isal import isal_zlib as codec
    except ImportError:
        import zlib as codec  # type: ignore[no-redef]
    return functools.partial(codec.decompressobj, 31)


@functools.cache
def _zstd() -> Callable[[], _Decoder]:
    try:
        from compression import zstd  # type: ignore[import-not-found]
    except ImportError:
        from backports import zstd
    decoder: Callable[[], _Decoder] = zstd.ZstdDecompressor
    return decoder


def plain_chunks(source: IO[bytes], hasher: Callable[[bytes], object]) -> Iterator[bytes]:
    """Decompressed chunks of `source`; `hasher` sees its bytes as they are on disk.

    The magic number decides the format, as in containerd: media types can be wrong. Raises
    BadLayerError for damaged or truncated data and for formats that layers do not have.
    """
    block = source.read(_READ)
    for magic, name in _FOREIGN.items():
        if block.startswith(magic) and block[257:262] != b"ustar":
            raise BadLayerError(f"compressed with {name}, which is not supported; use gzip or zstd")
    make = _gzip() if block[:2] == GZIP_MAGIC else _zstd() if _is_zstd(block[:4]) else None
    decoder = make() if make else None
    numbers = iter(range(_MAX_MEMBERS))
    while block:
        hasher(block)
        if make is None:
            yield block
        else:
            decoder = yield from _members(block, decoder, make, numbers)
        block = source.read(_READ)
    if decoder is not None:
        raise BadLayerError("compressed data ends too soon")


def _members(
    block: bytes, decoder: _Decoder | None, make: Callable[[], _Decoder], numbers: Iterator[int]
) -> Generator[bytes, None, _Decoder | None]:
    """What `block` decodes to; returns the decoder of a member that goes on in the next block."""
    at, size = 0, len(block)
    while at < len(block):
        piece = block[at : at + size]
        if decoder is None:
            data = piece.lstrip(b"\0")  # padding after a member
            at += len(piece) - len(data)
            if not data:
                continue
            if next(numbers, None) is None:
                raise BadLayerError(f"the layer has more than {_MAX_MEMBERS} compressed parts")
            decoder, piece = make(), data
        yield from _decoded(decoder, piece)
        at += len(piece)
        size *= 4
        if decoder.eof:
            at -= len(decoder.unused_data)
            decoder, size = None, _SMALL
    return decoder


def compression(magic: bytes) -> str:
    """`gzip` or `zstd` of data that begins with these four bytes; empty for anything else."""
    if magic[:2] == GZIP_MAGIC:
        return "gzip"
    return "zstd" if len(magic) == 4 and _is_zstd(magic) else ""


def is_compressed(magic: bytes) -> bool:
    """Whether a file that begins with these four bytes is gzip or zstd."""
    return magic[:2] == GZIP_MAGIC or _is_zstd(magic)


def _is_zstd(magic: bytes) -> bool:
    skippable = magic[1:] == _ZSTD_SKIPPABLE and magic[0] >> 4 == 5
    return magic == ZSTD_MAGIC or skippable


def _decoded(decoder: _Decoder, data: bytes) -> Iterator[bytes]:
    """What `data` decodes to, in pieces of bounded size, up to the end of the member."""
    plain = b""
    while not decoder.eof and (data or len(plain) == _CHUNK):
        try:
            plain = decoder.decompress(data, _CHUNK)
        except Exception as exc:  # noqa: BLE001 - each decoder has errors of its own
            raise BadLayerError(f"compressed data is damaged: {exc}") from None
        data = getattr(decoder, "unconsumed_tail", b"")  # zstd keeps it to itself
        if plain:
            yield plain


class LayerStream:
    """The tar stream of a layer file: exact reads in front, decoding and hashing behind.

    Everything but the results of `pieces` and `whole` counts as overhead; more than `max_overhead`
    bytes of it are refused with BadLayerError, so that a small layer cannot occupy a worker for
    hours. `compressed` stays that of nothing without
    `hash_compressed`.
    """

    def __init__(
        self, source: IO[bytes], max_overhead: int = MAX_OVERHEAD, *, hash_compressed: bool = True
    ) -> None:
        self.compressed = hashlib.sha256()
        self._hash_compressed = hash_compressed
        self.plain = hashlib.sha256()
        self.read_bytes = 0
        self._overhead_left = max_overhead
        self._source = source
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_QUEUED)
        self._stop = threading.Event()
        self._chunk = b""
        self._at = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            hasher = self.compressed.update if self._hash_compressed else _unhashed
            for chunk in plain_chunks(self._source, hasher):
                self.plain.update(chunk)
                self._queue.put(chunk)
                if self._stop.is_set():
                    return
            self._queue.put(b"")
        except BaseException as exc:  # noqa: BLE001 - raised again where the bytes are read
            self._queue.put(exc)

    def close(self) -> None:
        """Stop decoding."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def _next(self) -> bytes:
        if self._ended:
            return b""
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._ended = True
            raise item
        self._ended = not item
        self._chunk, self._at = item, 0
        return item

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, fewer only at the end."""
        if self._at + size <= len(self._chunk):
            self._at += size
            self.read_bytes += size
            self._count_overhead(size)
            return self._chunk[self._at - size : self._at]
        parts: list[bytes] = []
        while size:
            if self._at == len(self._chunk) and not self._next():
                break
            part = self._chunk[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
        data = b"".join(parts)
        self.read_bytes += len(data)
        self._count_overhead(len(data))
        return data

    def pieces(self, size: int) -> Iterator[memoryview]:
        """`size` bytes in pieces as they come. Raises BadLayerError when they do not."""
        while size:
            if self._at == len(self._chunk) and not self._next():
                raise BadLayerError("the archive ends within a file")
            view = memoryview(self._chunk)[self._at : self._at + size]
            self._at += len(view)
            size -= len(view)
            self.read_bytes += len(view)
            yield view

    def whole(self, size: int) -> memoryview | None:
        """`size` bytes in one piece, None when `pieces` has to gather them."""
        end = self._at + size
        if end > len(self._chunk):
            return None
        view = memoryview(self._chunk)[self._at : end]
        self._at = end
        self.read_bytes += size
        return view

    def skip(self, size: int) -> None:
        """Pass over `size` bytes."""
        if self._at + size <= len(self._chunk):
            self._at += size
            self.read_bytes += size
            self._count_overhead(size)
            return
        for piece in self.pieces(size):
            self._count_overhead(len(piece))

    def drain(self) -> None:
        """Read to the end, so that both hashes cover everything."""
        self._count_overhead(len(self._chunk) - self._at)
        while chunk := self._next():
            self._count_overhead(len(chunk))

    def _count_overhead(self, size: int) -> None:
        self._overhead_left -= size
        if self._overhead_left < 0:
            raise BadLayerError("too much of the layer is not file content")


def _unhashed(_: bytes) -> None:
    """The plain bytes have a digest to compare."""


class FileStream:
    """A blob that is a file itself, hashed as it is read."""

    def __init__(self, source: IO[bytes]) -> None:
        self.compressed = hashlib.sha256()
        self._source = source

    def pieces(self, size: int) -> Iterator[memoryview]:
        """`size` bytes in pieces. Raises BadLayerError when there are fewer."""
        while size:
            chunk = self._source.read(min(size, _CHUNK))
            if not chunk:
                raise BadLayerError("the blob is shorter than it was")
            self.compressed.update(chunk)
            size -= len(chunk)
            yield memoryview(chunk)

    def whole(self, _: int) -> None:
        """There is never one piece at hand."""

    def close(self) -> None:
        """Nothing is held."""
