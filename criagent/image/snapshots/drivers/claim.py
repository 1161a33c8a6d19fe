# SPDX-License-Identifier: Apache-2.0
"""One agent at a time for a store that lies outside the root directory. Synchronous."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from criagent.base.errors import UnsupportedError

_LOCKS = Path("/run/lock")


class Claim:
    """The lock of a store; `what` names it in the refusal.

    A mark in the store says whose it is, but copies of one root directory have the same mark.
    """

    def __init__(self, name: str, what: str) -> None:
        self._path = _LOCKS / f"criagent-{name.replace('/', '-')}.lock"
        self._what = what
        self._fd = -1

    def take(self) -> None:
        """Hold it until `release`, or the end of the process; idempotent. Raises UnsupportedError
        when another agent has it."""
        if self._fd >= 0:
            return
        _LOCKS.mkdir(exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(fd)
            raise UnsupportedError(
                f"another agent uses {self._what}; stop it, or give each agent its own"
            ) from exc
        self._fd = fd

    def release(self) -> None:
        """Let another agent have it; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def write_durably(file: Path, data: bytes) -> None:
    """Replace `file` so that a power failure leaves the old or the new one. Raises OSError."""
    new = file.with_name(f"{file.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    new.rename(file)
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
