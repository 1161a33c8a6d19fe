# SPDX-License-Identifier: Apache-2.0
"""A container's log in the CRI's format: its last lines, and those that are still to come.

A line is "TIME STREAM TAGS CONTENT" (Kubernetes' design proposal kubelet-cri-logging.md); the tag P
says that the line goes on in the next one. A line that is not of this format is shown as it stands.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from criagent.cli.containers.ages import parse_time
from criagent.cli.containers.calls import CommandError

_BLOCK = 64 << 10
_LINE = 1 << 20  # a line without an end is shown in parts of this size
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Line:
    """`time` is as written; `partial` = the next line of this stream continues it."""

    time: str
    stderr: bool
    partial: bool
    content: bytes


def parse(raw: bytes) -> Line:
    """A line of the file without its line break."""
    parts = raw.split(b" ", 3)
    if len(parts) < 3 or parts[1] not in {b"stdout", b"stderr"}:
        return Line(time="", stderr=False, partial=False, content=raw)
    partial = b"P" in parts[2].split(b":")
    content = parts[3] if len(parts) > 3 else b""
    at = parts[0].decode("utf-8", "backslashreplace")
    return Line(time=at, stderr=parts[1] == b"stderr", partial=partial, content=content)


def later(line: Line, since: dt.datetime) -> bool:
    """Whether a line is of `since` or later; one without a time is."""
    at = parse_time(line.time)
    return at is None or at >= since


def opened(path: Path) -> int:
    """A descriptor of a log file.

    A pod that mounts the log directory can put anything under the name: a link or a device is
    refused. Raises CommandError.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}; the log cannot be read") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CommandError(f"{path} is not a regular file; it is not the container's log")
    return fd


def seek_to_tail(fd: int, lines: int) -> None:
    """Position the file before its last `lines` whole lines, whose parts count as one."""
    os.lseek(fd, _tail_start(fd, os.fstat(fd).st_size, lines), os.SEEK_SET)


def _tail_start(fd: int, size: int, lines: int) -> int:
    """Lines are read backwards: a log may have gigabytes."""
    at, count, rest = size, 0, b""
    if lines == 0:
        return size
    while at > 0:
        start = max(at - _BLOCK, 0)
        data = os.pread(fd, at - start, start) + rest
        end = len(data)
        while (cut := data.rfind(b"\n", 0, end - 1 if end else 0)) >= 0:
            # data[cut + 1:end] is a line; the one before it ends at `cut`.
            before = data.rfind(b"\n", 0, cut) + 1
            if before == 0 and start > 0:
                break  # the line before is not whole in this block
            if not parse(data[before:cut]).partial:
                count += 1
                if count == lines:
                    return start + cut + 1
            end = cut + 1
        rest = data[:end]
        if len(rest) > _LINE:
            rest = rest[:_LINE]
        at = start
    return 0


def lines_of(fd: int) -> Iterator[Line]:
    """From the file's position to its end."""
    yield from _Reader(fd).lines(last=True)


def follow(path: Path, fd: int, running: Callable[[], bool]) -> Iterator[Line]:
    """From the position of `fd` on, through rotations, until `running` says no.

    A rotated file is read to its end, then the new one from its beginning. Takes over `fd`.
    """
    reader = _Reader(fd)
    try:
        while True:
            alive = running()  # before the read: what a container wrote at its end is there then
            yield from reader.lines(last=not alive)
            successor = _successor(path, fd)
            if successor is not None:
                yield from reader.lines(last=True)
                os.close(fd)
                fd, reader = successor, _Reader(successor)
            elif not alive:
                return
            else:
                time.sleep(_POLL_S)
    finally:
        os.close(fd)


def _successor(path: Path, fd: int) -> int | None:
    """The file that has the log's name now, if it is another one. A truncated one begins again."""
    with contextlib.suppress(CommandError):
        new = opened(path)
        if not os.path.samestat(os.fstat(new), os.fstat(fd)):
            return new
        if os.fstat(fd).st_size < os.lseek(fd, 0, os.SEEK_CUR):
            return new
        os.close(new)
    return None


class _Reader:
    """Splits a file into lines; what has no line break yet waits for more."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""

    def lines(self, *, last: bool) -> Iterator[Line]:
        """What is there now; `last` = also a line without its break."""
        while data := os.read(self._fd, _BLOCK):
            *whole, self._rest = (self._rest + data).split(b"\n")
            for raw in whole:
                yield parse(raw)
            if len(self._rest) > _LINE:
                yield parse(self._rest)
                self._rest = b""
        if last and self._rest:
            yield parse(self._rest)
            self._rest = b""
