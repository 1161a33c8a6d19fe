# SPDX-License-Identifier: Apache-2.0
"""The C library by ctypes, and the single place where a failed call becomes an OSError."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

Name = str | bytes | Path


def check(result: int, call: str, source: object = None, target: object = None) -> int:
    """`result`, or OSError with the call's name and both paths when it is negative."""
    if result >= 0:
        return result
    number = ctypes.get_errno()
    text = f"{call}: {os.strerror(number)}"
    if target is not None:
        raise OSError(number, text, str(source), None, str(target))
    raise OSError(number, text, None if source is None else str(source))


def syscall(number: int, call: str, *values: object, source: object = None) -> int:
    """syscall(2) by number, for calls that the C library may not export; see `check`."""
    return check(libc.syscall(ctypes.c_long(number), *values), call, source)
