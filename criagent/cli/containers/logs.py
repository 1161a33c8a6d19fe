# SPDX-License-Identifier: Apache-2.0
"""Print the log of a container, read from its log file: stdout to stdout, stderr to stderr.

On a terminal, control characters other than tabs are shown as escapes, because a container may
write what a terminal obeys. --raw and a pipe get the log as it stands, as with crictl and kubectl.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from criagent.base.text import printable
from criagent.cli.containers import ages
from criagent.cli.containers.calls import LIMIT_S, Calls, CommandError, with_agent
from criagent.cli.containers.found import all_containers, all_pods, container_of
from criagent.cli.containers.log_file import (
    Line,
    follow,
    later,
    lines_of,
    opened,
    seek_to_tail,
)

if TYPE_CHECKING:
    from criagent._proto import api_pb2

EXAMPLES = """examples:
  criagent logs web-0/nginx
  criagent logs --follow --tail 20 --timestamps 4f1c0
  criagent logs --since 1h30m --previous web-0/nginx

"""
_ASK_S = 1.0  # how often a followed container is asked for its state


def arguments(command: argparse.ArgumentParser) -> None:
    """The container and which of its lines, as crictl has them."""
    command.add_argument("container", metavar="CONTAINER", help="id, or name as NAME or POD/NAME")
    command.add_argument("--follow", "-f", action="store_true", help="wait for more until it exits")
    command.add_argument("--tail", metavar="N", type=_count, help="only the last N lines")
    command.add_argument(
        "--since", metavar="TIME", type=_since, help="only since a time or duration, such as 1h30m"
    )
    command.add_argument("--timestamps", "-t", action="store_true", help="begin lines with times")
    command.add_argument(
        "--previous", "-p", action="store_true", help="the log of the attempt before"
    )
    command.add_argument(
        "--raw", action="store_true", help="control characters as they are, on a terminal too"
    )


def run(chosen: argparse.Namespace) -> int:
    """Status 1 for a failure, 3 when the agent cannot be reached."""
    return with_agent(chosen, lambda calls: _print(chosen, calls))


def _print(chosen: argparse.Namespace, calls: Calls) -> int:
    containers = all_containers(calls)
    container = container_of(chosen.container, containers, all_pods(calls))
    status = _status(calls, container.id)
    if chosen.previous:
        path = _previous(calls, status, container, containers)
    elif not status.log_path:
        raise CommandError(
            f"container {chosen.container!r} has no log file; its pod asked for none"
        )
    else:
        path = Path(status.log_path)
    fd = opened(path)
    if chosen.tail is not None:
        seek_to_tail(fd, chosen.tail)
    writer = _Writer(chosen)
    if chosen.follow and not chosen.previous:
        for line in follow(path, fd, _Running(calls, container.id)):
            writer.write(line)
    else:
        try:
            for line in lines_of(fd):
                writer.write(line)
        finally:
            os.close(fd)
    writer.end()
    return 0


def _status(calls: Calls, container_id: str) -> api_pb2.ContainerStatus:
    from criagent._proto import api_pb2

    request = api_pb2.ContainerStatusRequest(container_id=container_id)
    status: api_pb2.ContainerStatus = calls.runtime.ContainerStatus(request, timeout=LIMIT_S).status
    return status


def _previous(
    calls: Calls,
    status: api_pb2.ContainerStatus,
    container: api_pb2.Container,
    containers: list[api_pb2.Container],
) -> Path:
    """The log of the attempt before, also when only its file is left, as kubelets keep it."""
    attempt = container.metadata.attempt
    path = Path(status.log_path)
    if attempt and path.name == f"{attempt}.log":
        return path.with_name(f"{attempt - 1}.log")
    for other in containers:
        if (
            other.pod_sandbox_id == container.pod_sandbox_id
            and other.metadata.name == container.metadata.name
            and other.metadata.attempt + 1 == attempt
        ):
            found = _status(calls, other.id).log_path
            if found:
                return Path(found)
    raise CommandError(f"container {container.metadata.name!r} has no attempt before {attempt}")


class _Running:
    """Whether a container still runs; asked once a second at most."""

    def __init__(self, calls: Calls, container_id: str) -> None:
        self._calls = calls
        self._id = container_id
        self._again = 0.0
        self._last = True

    def __call__(self) -> bool:
        import grpc

        from criagent._proto import api_pb2

        if (now := time.monotonic()) < self._again:
            return self._last
        self._again = now + _ASK_S
        try:
            state = _status(self._calls, self._id).state
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            self._last = False
        else:
            self._last = state in {api_pb2.CONTAINER_CREATED, api_pb2.CONTAINER_RUNNING}
        return self._last


class _Writer:
    """Writes lines to their streams. Parts of a line are joined, stream by stream."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self._since: dt.datetime | None = chosen.since
        self._timestamps: bool = chosen.timestamps
        self._streams = (sys.stdout, sys.stderr)
        self._shown: list[Callable[[bytes], bytes]] = [
            _as_is if chosen.raw or not stream.isatty() else escaped for stream in self._streams
        ]
        self._inside = [False, False]  # a line

    def write(self, line: Line) -> None:
        """Write a line, or a part of one."""
        number = int(line.stderr)
        if not self._inside[number] and self._since is not None and not later(line, self._since):
            return
        begins = self._timestamps and line.time and not self._inside[number]
        start = f"{printable(line.time)} ".encode() if begins else b""
        end = b"" if line.partial else b"\n"
        self._put(number, start + self._shown[number](line.content) + end)
        self._inside[number] = line.partial

    def end(self) -> None:
        """A line that the container did not end is ended on a terminal only."""
        for number, stream in enumerate(self._streams):
            if self._inside[number] and stream.isatty():
                self._put(number, b"\n")

    def _put(self, number: int, data: bytes) -> None:
        buffer: IO[bytes] = self._streams[number].buffer
        buffer.write(data)
        buffer.flush()


def _as_is(content: bytes) -> bytes:
    return content


def escaped(content: bytes) -> bytes:
    """Content with escapes for whatever a terminal might obey; tabs stay."""
    text = content.decode("utf-8", "backslashreplace").removesuffix("\r")
    return "\t".join(printable(part) for part in text.split("\t")).encode()


def _count(text: str) -> int | None:
    if text == "-1":  # kubectl's way to say all
        return None
    if not re.fullmatch(r"\d{1,15}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines")
    return int(text)


def _since(text: str) -> dt.datetime:
    try:
        return ages.since(text, dt.datetime.now(dt.UTC))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
