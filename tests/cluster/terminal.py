# SPDX-License-Identifier: Apache-2.0
"""A kubectl that runs for a while: on pipes, or on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from types import TracebackType

from tests.cluster.cluster import Space
from tests.cluster.ground import seconds


class Running:
    """`kubectl WORDS` in a namespace; what it writes is read by `until`. Ends with the block."""

    def __init__(self, space: Space, *words: str, tty: bool = False) -> None:
        command = ["kubectl", f"--namespace={space.name}", *words]
        environment = {**space.cluster.environment(), "TERM": "xterm"}
        self.seen = b""
        if tty:
            self._ours, theirs = pty.openpty()
            self.resize(30, 100)
            self._process = subprocess.Popen(
                ["setsid", "--ctty", *command],
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                env=environment,
            )
            os.close(theirs)
            self._input = self._ours
        else:
            self._ours, out = os.pipe()
            into, self._input = os.pipe()
            self._process = subprocess.Popen(
                command, stdin=into, stdout=out, stderr=out, env=environment
            )
            os.close(out)
            os.close(into)

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for descriptor in {self._ours, self._input}:
            os.close(descriptor)

    def send(self, text: str) -> None:
        os.write(self._input, text.encode())

    def resize(self, container_ids: int, columns: int) -> None:
        """A new size of the terminal, of which kubectl learns by SIGWINCH."""
        fcntl.ioctl(
            self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", container_ids, columns, 0, 0)
        )

    def until(self, text: str, limit_s: float = 30) -> str:
        """What it has written since the last call, to the line that `text` is in."""
        end = time.monotonic() + seconds(limit_s)
        while text.encode() not in self.seen:
            left = max(end - time.monotonic(), 0)
            ready = select.select([self._ours], [], [], left)[0]
            assert ready, f"no {text!r} within {seconds(limit_s):.0f} s, but {self.seen!r}"
            try:
                data = os.read(self._ours, 1 << 16)
            except OSError:  # the other end of a terminal was closed
                data = b""
            assert data, f"it ended without {text!r}: {self.seen!r}"
            self.seen += data
        place = self.seen.index(text.encode()) + len(text)
        found, self.seen = self.seen[:place], self.seen[place:]
        return found.decode(errors="replace")

    def status(self, limit_s: float = 30) -> int:
        """The exit status, once it has ended by itself."""
        return self._process.wait(seconds(limit_s))
