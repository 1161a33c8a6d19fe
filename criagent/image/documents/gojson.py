# SPDX-License-Identifier: Apache-2.0
"""JSON as Go's encoding/json reads it (version 1 semantics, Go 1.26), with limits.

Registries serve what Go programs took, so the letter of RFC 8259 is not enough: keys match in any
case, a repeated key merges into what the first one gave, null leaves a value as it is, bytes that
are no UTF-8 become U+FFFD. docs/images.md has the table; tests/vectors/image-documents.json the
cases, observed with Go itself. Standard library only: the unpack worker uses it.

A decoder is a function of a parsed value and of the value that was there before; it returns the new
one and may change the old one in place. Decoders raise MalformedError for a wrong type.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

MAX_VALUES = 100_000  # of one document; an index of a thousand entries has about 30,000
MAX_DEPTH = 200  # Go's own limit is 10,000; real documents have six levels

Decoder = Callable[[Any, Any], Any]
Zero = Callable[[], Any]

_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile("[\ud800-\udfff]")
_UPPER: dict[int, str | int] = {code: code - 32 for code in range(ord("a"), ord("z") + 1)}
_UPPER |= {0x17F: "S", 0x212A: "K"}
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d{1,2}):(\d\d):(\d\d)(?:[.,]\d+)?(?:Z|[+-](\d\d):(\d\d))", re.ASCII
)
_INT64 = range(-(1 << 63), 1 << 63)


class MalformedError(ValueError):
    """The document is not JSON, exceeds a limit, or has a value of the wrong type."""


class Number(str):
    """A number as it is written."""

    __slots__ = ()


class Members(list[tuple[str, Any]]):
    """The members of an object in their order, repeated keys included."""

    __slots__ = ()


class Slice:
    """A Go slice. Elements behind `length` come back when a repeated key makes it longer again."""

    __slots__ = ("array", "length")

    def __init__(self) -> None:
        self.array: list[Any] = []
        self.length = 0

    @property
    def items(self) -> list[Any]:
        """The elements."""
        return self.array[: self.length]


def parse(data: bytes) -> Any:
    """The value of `data`: None, bool, str, Number, list or Members. Raises MalformedError.

    Memory and time are bounded by MAX_VALUES before anything is built.
    """
    _check_limits(data)
    # A surrogate for each byte that is no UTF-8: `_text` makes U+FFFD of them, as of escapes.
    text = data.decode("utf-8", "surrogateescape")
    escapes = data.count(b"\\ud") + data.count(b"\\uD")
    if escapes > MAX_VALUES or len(text) - len(data.decode("utf-8", "ignore")) > MAX_VALUES:
        raise MalformedError(f"it has more than {MAX_VALUES} characters that are not UTF-8")
    try:
        return _DECODER.decode(text)
    except ValueError as exc:
        raise MalformedError(f"JSON is malformed: {exc}") from None
    except RecursionError:
        raise MalformedError("JSON nests too deeply") from None


def _check_limits(data: bytes) -> None:
    """Count values and depth outside of strings; what is counted is never less than there is."""
    text = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if text.count(b'"') > 4 * MAX_VALUES:
        raise MalformedError(f"it has more than {MAX_VALUES} values")
    outside = b"".join(text.split(b'"')[::2])
    if outside.count(b",") + outside.count(b"[") + outside.count(b"{") >= MAX_VALUES:
        raise MalformedError(f"it has more than {MAX_VALUES} values")
    depth = 0
    for bracket in outside.translate(None, _BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise MalformedError(f"JSON nests deeper than {MAX_DEPTH} levels")
        if depth < 0:
            break  # malformed, which the parser says better


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _members(pairs: list[tuple[str, Any]]) -> Members:
    return Members((_text(key), value) for key, value in pairs)


def _text(value: str) -> str:
    """`value` with U+FFFD for each lone surrogate."""
    return value if value.isascii() else _SURROGATE.sub("\ufffd", value)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_members,
    parse_int=Number,
    parse_float=Number,
    parse_constant=_constant,
)


def plain(value: Any) -> Any:
    """A parsed value as dict, list, str, int, float, bool and None; the last of equal keys wins.

    A number that no int64 or float holds is its text.
    """
    if isinstance(value, Members):
        return {key: plain(item) for key, item in value}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, Number):
        if value.lstrip("-").isdigit():
            return int(value) if len(value) < 20 else str(value)
        return number if math.isfinite(number := float(value)) else str(value)
    return _text(value) if isinstance(value, str) else value


def fold(key: str) -> str:
    """`key` so that keys which encoding/json takes for the same are equal.

    K and S also match U+212A and U+017F, the only other characters that fold to ASCII letters.
    """
    return key.upper() if key.isascii() else key.translate(_UPPER)


def _wrong(wanted: str, value: Any) -> MalformedError:
    match value:
        case bool():
            found = "a bool"
        case Number():
            found = f"the number {value[:40]}"
        case str():
            found = "a string"
        case Members():
            found = "an object"
        case _:
            found = "an array"
    return MalformedError(f"expected {wanted}, found {found}")


def string(value: Any, old: Any) -> Any:
    """A Go string."""
    if value is None:
        return old
    if not isinstance(value, str) or isinstance(value, Number):
        raise _wrong("a string", value)
    return _text(value)


def boolean(value: Any, old: Any) -> Any:
    """A Go bool."""
    if value is None:
        return old
    if not isinstance(value, bool):
        raise _wrong("a bool", value)
    return value


def _int64(text: str) -> int:
    # Python refuses to convert thousands of digits; int64 has 19.
    value = int(text) if len(text) <= 20 else 1 << 64
    if value not in _INT64:
        raise MalformedError(f"the number {text[:40]} does not fit into 64 bits")
    return value


def int64(value: Any, old: Any) -> Any:
    """A Go int64: neither a fraction nor an exponent, not even 1.0 or 1e3."""
    if value is None:
        return old
    if not isinstance(value, Number) or not value.lstrip("-").isdigit():
        raise _wrong("a whole number", value)
    return _int64(value)


def octets(value: Any, old: Any) -> Any:
    """A Go []byte that is checked and dropped: base64 text, or an array of bytes."""
    if value is None or (isinstance(value, str) and not isinstance(value, Number)):
        try:
            text = (value or "").replace("\r", "").replace("\n", "")
            base64.b64decode(text.encode(), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise MalformedError("expected base64 text") from None
        return old
    if not isinstance(value, list) or isinstance(value, Members):
        raise _wrong("base64 text", value)
    for item in value:
        if not 0 <= int64(item, 0) <= 255 or item == "-0":
            raise MalformedError("expected bytes")
    return old


def time(value: Any, old: Any) -> Any:
    """A Go *time.Time, as its text: RFC 3339, with what Go's parser lets pass. None for null."""
    if value is None:
        return None
    match = None
    if isinstance(value, str) and not isinstance(value, Number):
        match = _TIME.fullmatch(value)
    if match is None:
        raise MalformedError("expected a time in RFC 3339 format")
    year, month, day, hour, minute, second, zone_hour, zone_minute = (
        int(part or 0) for part in match.groups()
    )
    try:  # year 0 is none of Python's; 2000 has the same days
        dt.datetime(year or 2000, month, day, hour, minute, second, tzinfo=dt.UTC)
    except ValueError:
        raise MalformedError("expected a time in RFC 3339 format") from None
    if zone_hour > 24 or zone_minute > 60:  # Go's bounds
        raise MalformedError("expected a time in RFC 3339 format")
    return value


def list_of(element: Decoder, zero: Zero) -> Decoder:
    """A Go slice as a `Slice`; None for null."""

    def decode(value: Any, old: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, list) or isinstance(value, Members):
            raise _wrong("an array", value)
        made = Slice() if old is None or not value else old
        array = made.array
        for at, item in enumerate(value):
            if at == len(array):
                array.append(zero())
            array[at] = element(item, array[at])
        made.length = len(value)
        return made

    return decode


def map_of(element: Decoder, zero: Zero) -> Decoder:
    """A Go map with string keys as a dict; None for null. Repeated objects add to the first."""

    def decode(value: Any, old: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, Members):
            raise _wrong("an object", value)
        made = {} if old is None else old
        for key, item in value:
            made[key] = element(item, zero())
        return made

    return decode


class Struct:
    """A Go struct as a dict of its fields by their names in JSON; calling it decodes."""

    def __init__(self, fields: Mapping[str, tuple[Decoder, Zero]]) -> None:
        self._fields = {fold(name): (name, decode) for name, (decode, _) in fields.items()}
        self._zeros = {name: zero for name, (_, zero) in fields.items()}

    def zero(self) -> dict[str, Any]:
        """The struct before anything is decoded."""
        return {name: zero() for name, zero in self._zeros.items()}

    def __call__(self, value: Any, old: Any) -> Any:
        if value is None:
            return old
        if not isinstance(value, Members):
            raise _wrong("an object", value)
        for key, item in value:
            field = self._fields.get(fold(key))
            if field is None:
                continue
            name, decode = field
            try:
                old[name] = decode(item, old[name])
            except MalformedError as exc:
                raise MalformedError(f"{name}: {exc}") from None
        return old

    def pointer(self, value: Any, old: Any) -> Any:
        """A pointer to the struct; None for null."""
        if value is None:
            return None
        return self(value, self.zero() if old is None else old)

    def decode(self, data: bytes) -> dict[str, Any]:
        """The struct of a whole document. Raises MalformedError."""
        made: dict[str, Any] = self(parse(data), self.zero())
        return made


def nothing() -> None:
    """The zero value of pointers, slices and maps."""


STRING: tuple[Decoder, Zero] = (string, str)
INT: tuple[Decoder, Zero] = (int64, int)
BOOL: tuple[Decoder, Zero] = (boolean, bool)
STRINGS: tuple[Decoder, Zero] = (list_of(string, str), nothing)
STRING_MAP: tuple[Decoder, Zero] = (map_of(string, str), nothing)
TIME: tuple[Decoder, Zero] = (time, nothing)
OCTETS: tuple[Decoder, Zero] = (octets, nothing)
_EMPTY = Struct({})
NAMES: tuple[Decoder, Zero] = (map_of(_EMPTY, _EMPTY.zero), nothing)  # map[string]struct{}
