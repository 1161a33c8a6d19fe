# SPDX-License-Identifier: Apache-2.0
"""The C library's heap."""

from __future__ import annotations

from ctypes import c_size_t

from criagent.kernel.syscalls import libc


def give_back() -> None:
    """Return free pages in the midst of the heap to the kernel (man 3 malloc_trim).

    glibc gives only its end back by itself. Takes milliseconds; nothing with other C libraries.
    """
    trim = getattr(libc, "malloc_trim", None)
    if trim is not None:
        trim(c_size_t(0))
