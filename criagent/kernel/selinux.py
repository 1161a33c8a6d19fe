# SPDX-License-Identifier: Apache-2.0
"""SELinux labels: which ones the kernel accepts, and labels on files. Synchronous, no policy."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from pathlib import Path

from criagent.kernel.paths import RESOLVE_NO_SYMLINKS, openat2

_FS = Path("/sys/fs/selinux")
_XATTR = "security.selinux"
_DEPTH_LIMIT = 500  # directories open at once; pods control the depth of a volume
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_known(label: str) -> bool:
    """Whether the loaded policy knows user, role, type and level of `label`."""
    try:
        (_FS / "context").write_bytes(label.encode() + b"\0")
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            return False
        raise
    return True


def set_label(path: Path | str, label: str) -> None:
    """Label a file, a symlink not followed. Raises OSError."""
    os.setxattr(path, _XATTR, label.encode() + b"\0", follow_symlinks=False)


def relabel(top: str, label: str, passed_over: Collection[str] = ()) -> int:
    """Label `top` and everything below it; returns the number of files that were changed.

    `top` itself comes last and is checked first: if it has the label, the tree is finished, so a
    repeat costs one call. Concurrent changes of the tree lead nothing out of it. A file system
    without labels is left alone, and so are the directories `passed_over`. Raises OSError.
    """
    wanted = label.encode() + b"\0"
    changed = 0
    fd = openat2(-100, top, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, RESOLVE_NO_SYMLINKS)
    try:
        itself = f"/proc/self/fd/{fd}"
        if _label(itself) == wanted:
            return 0
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            changed = _below(os.open(".", _DIRECTORY, dir_fd=fd), top, wanted, passed_over)
        return changed + _set_label(itself, wanted)
    finally:
        os.close(fd)


def _below(directory: int, path: str, label: bytes, passed_over: Collection[str]) -> int:
    """Label the directory's content, then close it; inner before outer, without recursion."""
    changed = 0
    stack = [(directory, path, os.listdir(directory))]
    try:
        while stack:
            here, where, names = stack[-1]
            if not names:
                stack.pop()
                os.close(here)
                if stack:
                    changed += _set(stack[-1][0], where.rpartition("/")[2], label)
                continue
            name = names.pop()
            inner = f"{where}/{name}"
            if inner in passed_over:
                continue
            if len(stack) > _DEPTH_LIMIT:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), where)
            child = _open_directory(here, name)
            if child is None:
                changed += _set(here, name, label)
            else:
                stack.append((child, inner, os.listdir(child)))
    finally:
        for fd, _, _ in stack:
            os.close(fd)
    return changed


def _open_directory(parent: int, name: str) -> int | None:
    """The directory `name`; None if it is not a directory, or does not exist."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except (NotADirectoryError, FileNotFoundError):
        return None
    except OSError as exc:
        if exc.errno == errno.ELOOP:  # a symlink (man 2 open, O_NOFOLLOW)
            return None
        raise


def _set(parent: int, name: str, label: bytes) -> int:
    """Label one entry unless it has the label; 1 if it was changed."""
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        return 0
    try:
        itself = f"/proc/self/fd/{fd}"
        return 0 if _label(itself) == label else _set_label(itself, label)
    finally:
        os.close(fd)


def _label(itself: str) -> bytes:
    try:
        return os.getxattr(itself, _XATTR)
    except OSError as exc:
        if exc.errno in {errno.ENODATA, errno.EOPNOTSUPP}:
            return b""
        raise


def _set_label(itself: str, label: bytes) -> int:
    try:
        os.setxattr(itself, _XATTR, label)
    except OSError as exc:
        if exc.errno == errno.EOPNOTSUPP:
            return 0
        raise
    return 1
