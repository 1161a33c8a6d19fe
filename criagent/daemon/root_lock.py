# SPDX-License-Identifier: Apache-2.0
"""One process at a time works with a root directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from criagent.base.errors import UnavailableError

_LOCKS = Path("/proc/locks")


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Have the root directory alone, made when there is none.

    Raises UnavailableError while another process has it, and when it cannot be used.
    """
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        root.chmod(0o700)
        fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        cure = "; run as root" if os.geteuid() else ""
        raise UnavailableError(
            f"root directory {root} cannot be used: {exc.strerror}{cure}"
        ) from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnavailableError(
                f"another criagent serves with root directory {root}{_holder(fd)}; stop it, or "
                "give this one a storage.root of its own"
            ) from None
        yield
    finally:
        os.close(fd)


def _holder(fd: int) -> str:
    """Who has locked the file, as " (process PID)"; "" if the kernel does not say (proc_locks)."""
    inode = str(os.fstat(fd).st_ino)
    try:
        lines = [line.split() for line in _LOCKS.read_text().splitlines()]
    except OSError:
        return ""
    for fields in lines:  # 1: FLOCK ADVISORY WRITE 708 08:02:1234 0 EOF; 1: -> … waits
        if fields[1:2] == ["FLOCK"] and fields[5].rpartition(":")[2] == inode and fields[4] != "0":
            return f" (process {fields[4]})"
    return ""
