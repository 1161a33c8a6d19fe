# SPDX-License-Identifier: Apache-2.0
"""A program on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from types import TracebackType


class OnTerminal:
    """`command` on a new terminal; what it writes is read by `until`. Ends with the block."""

    def __init__(self, command: Sequence[str], *, lines: int = 30, columns: int = 100) -> None:
        self.seen = b""
        self._near, far = pty.openpty()
        self.resize(lines, columns)
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=far, stdout=far, stderr=far, env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        os.close(far)

    def __enter__(self) -> OnTerminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._near)

    def send(self, text: str) -> None:
        os.write(self._near, text.encode())

    def resize(self, lines: int, columns: int) -> None:
        """The program gets SIGWINCH."""
        fcntl.ioctl(self._near, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def echoes(self) -> bool:
        """Whether the terminal itself shows what is typed."""
        flags = termios.tcgetattr(self._near)[3]
        assert isinstance(flags, int)
        return bool(flags & termios.ECHO)

    def until(self, text: str, limit_s: float = 30) -> str:
        """What it has written since the last call, up to `text`."""
        end = time.monotonic() + limit_s
        while text.encode() not in self.seen:
            ready = select.select([self._near], [], [], max(end - time.monotonic(), 0))[0]
            assert ready, f"no {text!r} within {limit_s:.0f} s, but {self.seen!r}"
            try:
                data = os.read(self._near, 1 << 16)
            except OSError:  # the other end was closed
                data = b""
            assert data, f"it ended without {text!r}: {self.seen!r}"
            self.seen += data
        place = self.seen.index(text.encode()) + len(text.encode())
        found, self.seen = self.seen[:place], self.seen[place:]
        return found.decode(errors="replace")

    def status(self, limit_s: float = 30) -> int:
        """The exit status, once it has ended by itself."""
        return self._process.wait(limit_s)
