# SPDX-License-Identifier: Apache-2.0
"""The C library's heap."""

from __future__ import annotations

from ctypes import c_int, c_size_t

from criagent.kernel.syscalls import libc

_M_ARENA_MAX = -8  # malloc.h


def one_arena() -> None:
    """Let all threads use one heap (man 3 mallopt); nothing with other C libraries.

    glibc gives threads heaps of their own, and no thread uses what is free in those of others. To
    be called before the first thread starts.
    """
    option = getattr(libc, "mallopt", None)
    if option is not None:
        option(c_int(_M_ARENA_MAX), c_int(1))


def give_back() -> None:
    """Return free pages in the midst of the heap to the kernel (man 3 malloc_trim).

    glibc gives only its end back by itself. Takes milliseconds; nothing with other C libraries.
    """
    trim = getattr(libc, "malloc_trim", None)
    if trim is not None:
        trim(c_size_t(0))
