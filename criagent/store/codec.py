# SPDX-License-Identifier: Apache-2.0
"""Rows in the database: JSON with the version of its shape.

The body of a row is `{"v": VERSION, "row": {…}}`. Version 1, which criagent 0.1 wrote, is the bare
object. A change of the model that gives a stored field another name, type or meaning raises VERSION
and adds a decoder of the former one; a new field with a default needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")

VERSION = 2
_REASON_LIMIT = 500
_OPENING = b'{"v":%d,"row":' % VERSION


class UndecodableError(Exception):
    """A body that no decoder of this version accepts; the text is the reason."""


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    v: int
    row: msgspec.Raw


class RowCodec(Generic[T]):
    """Bodies of rows of one kind. `former` has decoders of older versions that differ."""

    def __init__(
        self, kind: type[T], former: Mapping[int, Callable[[bytes], T]] | None = None
    ) -> None:
        current = msgspec.json.Decoder(kind).decode
        self._decoders: dict[int, Callable[[bytes], T]] = dict.fromkeys(
            range(1, VERSION + 1), current
        )
        self._decoders.update(former or {})
        self._encode = msgspec.json.Encoder().encode

    def encode(self, row: T) -> bytes:
        """The body of `row` in this version's shape."""
        return b"%b%b}" % (_OPENING, self._encode(row))

    def decode(self, body: bytes) -> T:
        """The row of a body that this version or an older one wrote. Raises UndecodableError."""
        try:
            version, content = _opened(body)
            decode = self._decoders.get(version)
            if decode is None:
                raise UndecodableError(
                    f"it has version {version}; this criagent reads 1 to {VERSION}"
                )
            return decode(content)
        # A stored text may not be UTF-8, a value may not be in its enum.
        except (msgspec.MsgspecError, ValueError, TypeError) as exc:
            raise UndecodableError(str(exc)[:_REASON_LIMIT]) from exc


def _opened(body: bytes) -> tuple[int, bytes]:
    """The version and the object within."""
    if body.startswith(_OPENING) and body.endswith(b"}"):  # as `encode` writes it
        return VERSION, body[len(_OPENING) : -1]
    if not body.startswith(b'{"v":'):
        return 1, body
    envelope = msgspec.json.decode(body, type=_Envelope)
    return envelope.v, bytes(envelope.row)
