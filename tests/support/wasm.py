# SPDX-License-Identifier: Apache-2.0
"""A WebAssembly module by hand (WebAssembly Core Specification, 5, "Binary Format")."""

from __future__ import annotations

_I32, _FUNC = 0x7F, 0x60
_TRAP = 0x00  # unreachable
_CALL, _CONST, _DROP, _END = 0x10, 0x41, 0x1A, 0x0B
_STORE = b"\x36\x02\x00"  # i32.store, aligned, without an offset
_WASI = "wasi_snapshot_preview1"
_AT = 8  # where the text is in memory; an iovec that names it is at 0, the count of bytes at 4096
_COUNT = 4096


def printing(text: str, status: int | None) -> bytes:
    """A module for WASI that writes `text` to standard output and exits with `status`.

    None: it ends with a trap.
    """
    data = text.encode()
    types = _vector(
        [
            bytes([_FUNC]) + _vector([bytes([_I32])] * 4) + _vector([bytes([_I32])]),  # fd_write
            bytes([_FUNC]) + _vector([bytes([_I32])]) + _vector([]),  # proc_exit
            bytes([_FUNC]) + _vector([]) + _vector([]),  # _start
        ]
    )
    imports = _vector([_import("fd_write", 0), _import("proc_exit", 1)])
    exports = _vector([_name("memory") + b"\x02\x00", _name("_start") + b"\x00\x02"])
    body = (
        _vector([])
        + _const(0) + _const(_AT) + _STORE
        + _const(4) + _const(len(data)) + _STORE
        + _const(1) + _const(0) + _const(1) + _const(_COUNT) + bytes([_CALL, 0, _DROP])
        + (bytes([_TRAP]) if status is None else _const(status) + bytes([_CALL, 1]))
        + bytes([_END])
    )  # fmt: skip
    segment = b"\x00" + _const(_AT) + bytes([_END]) + _number(len(data)) + data
    return b"\0asm\x01\0\0\0" + b"".join(
        bytes([section]) + _number(len(content)) + content
        for section, content in (
            (1, types),
            (2, imports),
            (3, _vector([_number(2)])),
            (5, _vector([b"\x00\x01"])),
            (7, exports),
            (10, _vector([_number(len(body)) + body])),
            (11, _vector([segment])),
        )
    )


def _import(name: str, kind: int) -> bytes:
    return _name(_WASI) + _name(name) + b"\x00" + _number(kind)


def _name(text: str) -> bytes:
    return _number(len(text)) + text.encode()


def _vector(items: list[bytes]) -> bytes:
    return _number(len(items)) + b"".join(items)


def _const(value: int) -> bytes:
    return bytes([_CONST]) + _signed(value)


def _number(value: int) -> bytes:
    """LEB128, unsigned."""
    found = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        found.append(low | (0x80 if value else 0))
        if not value:
            return bytes(found)


def _signed(value: int) -> bytes:
    """LEB128, signed, of a number that is not negative."""
    found = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        done = value == 0 and not low & 0x40
        found.append(low | (0 if done else 0x80))
        if done:
            return bytes(found)
