# SPDX-License-Identifier: Apache-2.0
"""The connection to the running agent: its socket, a channel, and what a failed call means."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from criagent.cli.common import config_path
from criagent.config.load import files
from criagent.config.storage_section import Storage

if TYPE_CHECKING:
    import grpc

UNREACHABLE = 3
_ANSWER_S = 10.0  # for the one call that a healthy agent answers at once
_MESSAGE = 16 << 20


class UnreachableError(Exception):
    """No agent answers; the text names the cure."""


def socket_path(chosen: argparse.Namespace) -> Path:
    """--socket, else CONTAINER_RUNTIME_ENDPOINT as crictl reads it, else the configured socket.

    Either may begin with "unix://". The socket is read even from a configuration that has other
    errors.
    """
    named = chosen.socket or os.environ.get("CONTAINER_RUNTIME_ENDPOINT", "")
    if named:
        return Path(str(named).removeprefix("unix://").removeprefix("unix:"))
    return _configured(config_path(chosen))


def _configured(path: Path) -> Path:
    found: object = None
    for file in files(path):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            storage = tomllib.loads(file.read_text()).get("storage", {})
            found = storage.get("socket", found)
    return Path(found) if isinstance(found, str) else Storage().socket


@contextlib.contextmanager
def connection(chosen: argparse.Namespace) -> Iterator[grpc.Channel]:
    """A channel to an agent that answers.

    While the channel is in use, the agent is asked for its version at intervals. When it stops
    answering, the channel is closed, which ends the call in progress. Raises UnreachableError when
    no agent answers at the start.
    """
    import grpc

    path = socket_path(chosen)
    _look(path)
    options = [
        ("grpc.max_receive_message_length", _MESSAGE),
        ("grpc.max_send_message_length", _MESSAGE),
    ]
    with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
        _ask(channel, path)
        done = threading.Event()
        watch = threading.Thread(target=_watch, args=(channel, path, done), daemon=True)
        watch.start()
        try:
            yield channel
        finally:
            done.set()


def _look(path: Path) -> None:
    """Connect once: the kernel's reason is clearer than gRPC's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
        try:
            client.connect(os.fspath(path))
        except PermissionError:
            raise UnreachableError(
                f"permission denied for {path}; run this command as root"
            ) from None
        except FileNotFoundError:
            raise UnreachableError(
                f"the agent is not running: the socket {path} does not exist; start it with "
                "`systemctl start criagent`, or name its socket with --socket"
            ) from None
        except OSError as error:
            if not path.is_socket():
                raise UnreachableError(
                    f"{path} is not a socket; name the agent's with --socket"
                ) from None
            raise UnreachableError(
                f"nothing answers on {path} ({error.strerror}); check `systemctl status criagent`"
            ) from None


def _ask(channel: grpc.Channel, path: Path) -> None:
    import grpc

    from criagent._proto import api_pb2, api_pb2_grpc

    stub = api_pb2_grpc.RuntimeServiceStub(channel)
    try:
        stub.Version(api_pb2.VersionRequest(), timeout=_ANSWER_S)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise UnreachableError(
                f"the agent on {path} has not answered for {_ANSWER_S:.0f} s; check `systemctl "
                "status criagent` and its journal"
            ) from None
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            text = f"the agent on {path} cannot be queried: {error.details()}"
            raise UnreachableError(text) from None
        # Any other status is an answer.


def _watch(channel: grpc.Channel, path: Path, done: threading.Event) -> None:
    while not done.wait(_ANSWER_S):
        try:
            _ask(channel, path)
        except UnreachableError as error:
            if not done.is_set():
                print(error, file=sys.stderr)
                channel.close()
            return


def failed(error: grpc.RpcError | UnreachableError) -> int:
    """Print a failure; returns the exit status for it."""
    import grpc

    if isinstance(error, UnreachableError):
        print(error, file=sys.stderr)
        return UNREACHABLE
    code = error.code()
    if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
        print(f"the agent cannot be queried: {error.details()}", file=sys.stderr)
        return UNREACHABLE
    if code is grpc.StatusCode.CANCELLED:  # by the watch, which has printed why
        return UNREACHABLE
    if code is grpc.StatusCode.UNIMPLEMENTED:
        print(
            f"{error.details()}; check that this is criagent's socket and that both have "
            "the same version",
            file=sys.stderr,
        )
        return 1
    print(error.details(), file=sys.stderr)
    return 1
