# SPDX-License-Identifier: Apache-2.0
"""Makes text that images, registries, plug-ins and callers control fit to be shown.

Such text may be of any length and contain terminal escapes, bidirectional overrides, line breaks or
lone surrogates. Whatever a status, a log line or an event shows passes `bounded` first.
"""

from __future__ import annotations

from collections.abc import Callable

# What a gRPC status message may hold unescaped (gRPC over HTTP/2, "Percent-Byte-Unencoded").
_UNENCODED = bytes(byte for byte in range(0x20, 0x7F) if byte != 0x25)


def printable(text: str) -> str:
    """`text` with backslash escapes for every unprintable character, line breaks included."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def bounded(text: str, limit: int, size: Callable[[str], int] = len) -> str:
    """`text`, printable and of at most `limit` by `size`; a mark replaces its middle if needed.

    The beginning of an error names the object and its end the cure, so both remain. `size` must be
    at least the number of characters.
    """
    if len(text) <= limit:
        shown = printable(text)
        if size(shown) <= limit:
            return shown
    mark = f" ... ({len(text)} characters) ... "
    room = max(limit - size(mark), 0)
    tail = room // 4
    return _longest(text[:limit], room - tail, size) + mark + _longest_end(text, tail, size)


def wire_size(text: str) -> int:
    """Bytes that `text` takes as the message of a gRPC status, percent-encoded."""
    data = text.encode("utf-8", "backslashreplace")
    return len(data) + 2 * len(data.translate(None, _UNENCODED))


def _longest(text: str, room: int, size: Callable[[str], int]) -> str:
    fits, above = 0, len(text) + 1
    while above - fits > 1:
        middle = (fits + above) // 2
        if size(printable(text[:middle])) <= room:
            fits = middle
        else:
            above = middle
    return printable(text[:fits])


def _longest_end(text: str, room: int, size: Callable[[str], int]) -> str:
    fits, above = 0, min(len(text), room) + 1
    while above - fits > 1:
        middle = (fits + above) // 2
        if size(printable(text[-middle:])) <= room:
            fits = middle
        else:
            above = middle
    return printable(text[-fits:]) if fits else ""
