# SPDX-License-Identifier: Apache-2.0
"""Processes: unambiguous references, pidfds, capabilities. Synchronous, no policy."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from criagent.kernel.syscalls import check, libc
from criagent.model.common import ProcessRef

_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_CHILD_SUBREAPER = 36
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAP = Path("/proc/sys/kernel/cap_last_cap")


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None when there is no such process or only a zombie of it."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] in {b"Z", b"X"}:
        return None
    return int(fields[19])


def process_ref(pid: int) -> ProcessRef | None:
    """The process that has `pid` now, or None if there is none."""
    ticks = start_ticks(pid)
    return None if ticks is None else ProcessRef(pid=pid, start_ticks=ticks)


def alive(ref: ProcessRef | None) -> bool:
    """Whether exactly this process lives; a zombie does not."""
    return ref is not None and start_ticks(ref.pid) == ref.start_ticks


def open_pidfd(ref: ProcessRef) -> int | None:
    """A pidfd of exactly this process, or None when it has ended."""
    try:
        fd = os.pidfd_open(ref.pid)
    except ProcessLookupError:
        return None
    if start_ticks(ref.pid) != ref.start_ticks:
        os.close(fd)
        return None
    return fd


def node_ids(pid: int, uid: int, gid: int) -> tuple[int, int]:
    """The node's ids for `uid` and `gid` of the user namespace of process `pid`.

    Unmapped ids are returned unchanged.
    """
    return _node_id(pid, "uid_map", uid), _node_id(pid, "gid_map", gid)


def _node_id(pid: int, name: str, number: int) -> int:
    for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
        inside, outside, length = map(int, line.split())
        if inside <= number < inside + length:
            return number - inside + outside
    return number


def send_signal(ref: ProcessRef, number: int) -> bool:
    """Signal exactly this process; False when it has ended."""
    fd = open_pidfd(ref)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except OSError as exc:
        if exc.errno != errno.ESRCH:
            raise
        return False
    finally:
        os.close(fd)
    return True


def become_subreaper() -> None:
    """Become the parent of descendants whose parents end (man 2 prctl)."""
    check(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def keep_capabilities(kept: Iterable[int]) -> None:
    """Drop every capability of this process but `kept`, for good (man 7 capabilities)."""
    have = {number for number in kept if number <= int(_LAST_CAP.read_text())}
    for number in range(int(_LAST_CAP.read_text()) + 1):
        if number not in have:
            check(libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "prctl")
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)()
    check(libc.capget(ctypes.byref(header), data), "capget")
    for half in range(2):
        mask = sum(1 << (number - 32 * half) for number in have if number // 32 == half)
        data[half].permitted &= mask
        data[half].effective = data[half].permitted
        data[half].inheritable = 0
    check(libc.capset(ctypes.byref(header), data), "capset")


@contextlib.contextmanager
def owning(uid: int, gid: int) -> Iterator[None]:
    """Within the block this thread creates files as `uid` and `gid`, with the capabilities it has.

    The kernel refuses to create a file through an idmapped mount for an id that it does not map
    (EOVERFLOW), and root's own is one (man 2 setfsuid).
    """
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)()
    check(libc.capget(ctypes.byref(header), data), "capget")
    before = libc.setfsuid(-1), libc.setfsgid(-1)
    libc.setfsgid(gid)
    libc.setfsuid(uid)  # which takes capabilities of files away, unless it is root's
    try:
        check(libc.capset(ctypes.byref(header), data), "capset")
        yield
    finally:
        libc.setfsuid(before[0])
        libc.setfsgid(before[1])
