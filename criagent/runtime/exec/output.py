# SPDX-License-Identifier: Apache-2.0
"""The output of a command for ExecSync: bounded for one call, and for all calls together."""

from __future__ import annotations

import asyncio

from criagent.process.child import Pipes
from criagent.process.pipe_ends import PipeReader

# What every call may use without the budget: the output of a probe.
OWN_SHARE = 64 << 10


class OutputBudget:
    """Bytes that the outputs of all calls may use together, beyond each one's own share."""

    def __init__(self, most: int) -> None:
        self._left = most

    def take(self, wanted: int) -> int:
        """As many of the `wanted` bytes as are left."""
        got = min(wanted, self._left)
        self._left -= got
        return got

    def give(self, count: int) -> None:
        """Return `count` bytes."""
        self._left += count


class ExecOutput:
    """Both streams of one command. Together they keep `limit` bytes, and neither starves: each may
    have half, and what the other does not use. What is kept is the beginning of a stream.
    `pipes` are those of the command.
    """

    def __init__(self, limit: int, budget: OutputBudget, pipes: Pipes) -> None:
        self._limit = limit
        self._budget = budget
        self._taken = 0
        self._stdout, self._stderr = pipes.output(self._stream), pipes.errors(self._stream)

    async def ended(self, drain_s: float) -> None:
        """Return when both streams have ended, or after `drain_s` seconds: a background child may
        hold them, and its output is not wanted.
        """
        try:
            async with asyncio.timeout(drain_s):
                await self._stdout.ended()
                await self._stderr.ended()
        except TimeoutError:
            for stream in (self._stdout, self._stderr):
                stream.drain()

    def taken(self) -> tuple[bytes, bytes]:
        """Standard output and errors, once; nothing more is read. They count until `close`."""
        kept = bytes(self._stdout.data), bytes(self._stderr.data)
        self._stop()
        return kept

    @property
    def dropped(self) -> int:
        """The number of bytes that did not fit."""
        return self._stdout.dropped + self._stderr.dropped

    def close(self) -> None:
        """Stop reading, and return to the budget what was taken from it; idempotent."""
        self._stop()
        self._budget.give(self._taken)
        self._taken = 0

    def admit(self, stream: PipeReader, wanted: int) -> int:
        """How many further bytes of `stream` to keep; the other stream may lose some for it."""
        other = self._stderr if stream is self._stdout else self._stdout
        room = self._share(len(other.data)) - len(stream.data)
        room = self._paid(max(min(wanted, room), 0), len(stream.data) + len(other.data))
        if (most := self._share(len(stream.data) + room)) < len(other.data):
            other.cut(most)
        return room

    def _stop(self) -> None:
        for stream in (self._stdout, self._stderr):
            stream.close()
            stream.data = bytearray()

    def _share(self, other: int) -> int:
        return max(self._limit // 2, self._limit - other)

    def _paid(self, wanted: int, have: int) -> int:
        """As many of `wanted` further bytes as this call's share and the budget allow."""
        due = min(have + wanted, self._limit) - OWN_SHARE - self._taken
        if due <= 0:
            return wanted
        got = self._budget.take(due)
        self._taken += got
        return max(wanted - (due - got), 0)

    def _stream(self, fd: int) -> _Stream:
        return _Stream(fd, self)


class _Stream(PipeReader):
    def __init__(self, fd: int, output: ExecOutput) -> None:
        super().__init__(fd, limit=0)
        self._output = output

    def cut(self, most: int) -> None:
        """Keep the first `most` bytes."""
        self.dropped += len(self.data) - most
        del self.data[most:]

    def _admitted(self, count: int) -> int:
        return 0 if self.dropped else self._output.admit(self, count)
