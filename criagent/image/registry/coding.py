# SPDX-License-Identifier: Apache-2.0
"""Content-Encoding (RFC 9110, section 8.4.1), decoded in chunks of bounded size.

Requests ask for identity; servers and proxies that compress anyway are common.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from criagent.base.errors import CorruptError, RegistryError
from criagent.image.registry.failure import printable

_PIECE = 1 << 20  # most that is decoded at once: a bomb makes a thousand times its input
_MOST = 3  # codings upon one another


def codings_of(fields: Iterable[str]) -> tuple[str, ...]:
    """The codings that Content-Encoding fields name, in the order in which they were applied."""
    names = (name.strip().lower() for field in fields for name in field.split(","))
    return tuple(name for name in names if name and name != "identity")


class Undo:
    """Decodes bytes as they come. Raises RegistryError for unknown codings."""

    def __init__(self, codings: tuple[str, ...], where: str) -> None:
        unknown = [name for name in codings if name not in _STAGES]
        if unknown or len(codings) > _MOST:
            names = printable(", ".join(unknown or codings), 100)
            raise RegistryError(
                f"{where} answered in the encoding {names}, which was not requested", url=where
            )
        self._where = where
        self._stages = [_STAGES[name]() for name in reversed(codings)]

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The decoded `data`, in chunks. Raises CorruptError for damaged data."""
        return self._through(data, 0)

    def finish(self) -> None:
        """The data has ended. Raises CorruptError when the encoding is incomplete."""
        if not all(stage.complete for stage in self._stages):
            raise CorruptError(f"{self._where}: the answer's encoding ends too soon")

    def _through(self, data: bytes, stage: int) -> Iterator[bytes]:
        if stage == len(self._stages):
            yield data
            return
        try:
            for piece in self._stages[stage].feed(data):
                yield from self._through(piece, stage + 1)
        except CorruptError:
            raise
        except Exception as exc:  # noqa: BLE001 - each decoder has errors of its own
            raise CorruptError(f"{self._where}: the answer's encoding is damaged: {exc}") from None


class _Stage:
    """One coding: members or frames one after another."""

    def __init__(self, make: Callable[[bytes], Any], need: int = 1) -> None:
        self._make = make
        self._need = need  # bytes that tell the format
        self._decoder: Any = None
        self._ahead = b""

    @property
    def complete(self) -> bool:
        if self._decoder is None:
            return not self._ahead
        return bool(self._decoder.eof)

    def feed(self, data: bytes) -> Iterator[bytes]:
        data = self._ahead + data
        self._ahead = b""
        while data:
            if self._decoder is None or self._decoder.eof:
                if self._decoder is not None:
                    data = data.lstrip(b"\0")  # padding after a member
                if len(data) < self._need:
                    self._ahead = data
                    return
                self._decoder = self._make(data)
            yield from self._member(data)
            data = self._decoder.unused_data if self._decoder.eof else b""

    def _member(self, data: bytes) -> Iterator[bytes]:
        decoder, plain = self._decoder, b""
        while not decoder.eof and (data or len(plain) == _PIECE):
            plain = decoder.decompress(data, _PIECE)
            data = getattr(decoder, "unconsumed_tail", b"")  # zstd keeps it to itself
            if plain:
                yield plain


def _gzip(_: bytes) -> Any:
    return zlib.decompressobj(31)


def _deflate(data: bytes) -> Any:
    """zlib's format by the standard; bare deflate by some servers, which Go takes alone."""
    wrapped = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
    return zlib.decompressobj(15 if wrapped else -15)


def _zstd(_: bytes) -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found]
    except ImportError:
        from backports import zstd
    return zstd.ZstdDecompressor()


_STAGES: dict[str, Callable[[], _Stage]] = {
    "gzip": lambda: _Stage(_gzip),
    "x-gzip": lambda: _Stage(_gzip),
    "deflate": lambda: _Stage(_deflate, 2),
    "zstd": lambda: _Stage(_zstd),
}
