# SPDX-License-Identifier: Apache-2.0
"""syncfs(2) that misses no failed write, whoever else syncs the same file system."""

from __future__ import annotations

import os
from pathlib import Path

from criagent.kernel.syscalls import check, libc


class WriteBack:
    """What is written to the file system of `directory` after `open`.

    The kernel reports a failed write-back once to each open file description, and not to one that
    is opened after another was told. So open it before the first write that it is to cover.
    """

    def __init__(self, directory: Path) -> None:
        self._failure: OSError | None = None
        self._directory = directory
        self._fd = -1

    def open(self) -> None:
        """Begin. Raises OSError."""
        self._fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def sync(self) -> None:
        """Make it durable. Raises OSError when any of it may be lost, then and ever after."""
        if self._failure is not None:
            raise self._failure
        try:
            check(libc.syncfs(self._fd), "syncfs", self._directory)
        except OSError as failure:
            self._failure = failure
            raise

    @property
    def failed(self) -> bool:
        """Whether a sync has failed."""
        return self._failure is not None

    def close(self) -> None:
        """Give the descriptor back, if there is one."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
