# SPDX-License-Identifier: Apache-2.0
"""Project quotas of xfs and ext4 (man 2 quotactl, man 2 ioctl_fs_ioc_fsgetxattr).

What is made in a directory of a project belongs to it too. Synchronous, no policy.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from criagent.kernel.syscalls import syscall

_QUOTACTL_FD = 443  # the same number on all architectures, Linux 5.14
_PROJECT = 2  # PRJQUOTA
_GET_QUOTA, _SET_QUOTA, _GET_NEXT_QUOTA = 0x800007, 0x800008, 0x800009
_GET_STATE = ord("X") << 8 | 5  # Q_XGETQSTAT, which ext4 answers too
_ENFORCED = 1 << 5  # FS_QUOTA_PDQ_ENFD
_LIMITS = 1 | 4  # QIF_BLIMITS, QIF_ILIMITS
_BLOCK = 1024  # of limits, whatever the file system has
_QUOTA = struct.Struct("=8QI4x")  # struct if_dqblk
_NEXT_QUOTA = struct.Struct("=8QII")  # struct if_nextdqblk
_STATE = struct.Struct("=bxH124x")  # struct fs_quota_stat, of which we need its start
_GET_XATTR, _SET_XATTR = 0x801C581F, 0x401C5820  # FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR
_XATTR = struct.Struct("=5I8s")  # struct fsxattr
_INHERIT = 0x200  # FS_XFLAG_PROJINHERIT
_OFF = {errno.ENOSYS, errno.ESRCH, errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}


@dataclass(frozen=True, slots=True)
class Project:
    """What belongs to a project, and how much may: 0 = no limit."""

    id: int
    used_bytes: int
    inodes: int
    limit_bytes: int


def enforced(fd: int) -> bool:
    """Whether the file system that holds the open file keeps the limits of projects."""
    try:
        answer = _quotactl(fd, _GET_STATE, 0, bytes(_STATE.size))
    except OSError as exc:
        if exc.errno in _OFF:
            return False
        raise
    _, flags = _STATE.unpack(answer)
    return bool(flags & _ENFORCED)


def project(fd: int) -> tuple[int, bool]:
    """The project of an open file, and whether what is made in it belongs to that too.

    Raises OSError: ENOTTY, EOPNOTSUPP where the file system has no projects.
    """
    flags, _, _, number, _, _ = _XATTR.unpack(fcntl.ioctl(fd, _GET_XATTR, bytes(_XATTR.size)))
    return number, bool(flags & _INHERIT)


def adopt(fd: int, number: int) -> None:
    """Give an open directory, which is empty, and all that is made in it to the project."""
    flags, *rest = _XATTR.unpack(fcntl.ioctl(fd, _GET_XATTR, bytes(_XATTR.size)))
    rest[2] = number
    fcntl.ioctl(fd, _SET_XATTR, _XATTR.pack(flags | _INHERIT, *rest))


def usage(fd: int, number: int) -> Project:
    """A project of the file system that holds the open file; one without a record is empty."""
    try:
        answer = _quotactl(fd, _GET_QUOTA, number, bytes(_QUOTA.size))
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            return Project(number, 0, 0, 0)
        raise
    return _project(number, _QUOTA.unpack(answer))


def limit(fd: int, number: int, size: int) -> None:
    """Let the project have `size` bytes, to the next KiB; 0 = forget its limit."""
    blocks = -(-size // _BLOCK)
    _quotactl(fd, _SET_QUOTA, number, _QUOTA.pack(blocks, blocks, 0, 0, 0, 0, 0, 0, _LIMITS))


def projects(fd: int, first: int, last: int) -> Iterator[Project]:
    """Those that have a record, from the id `first` to `last`."""
    while first <= last:
        try:
            answer = _quotactl(fd, _GET_NEXT_QUOTA, first, bytes(_NEXT_QUOTA.size))
        except OSError as exc:
            if exc.errno in {errno.ENOENT, errno.ESRCH}:
                return
            raise
        *fields, _, number = _NEXT_QUOTA.unpack(answer)
        if number > last:
            return
        yield _project(number, fields)
        first = number + 1


def _project(number: int, fields: list[int] | tuple[int, ...]) -> Project:
    hard, _, space, _, _, inodes, *_ = fields
    return Project(number, space, inodes, hard * _BLOCK)


def _quotactl(fd: int, command: int, number: int, record: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(record, len(record))
    code = ctypes.c_uint(command << 8 | _PROJECT)
    syscall(_QUOTACTL_FD, "quotactl_fd", ctypes.c_uint(fd), code, ctypes.c_uint(number), buffer)
    return buffer.raw
