# SPDX-License-Identifier: Apache-2.0
"""One exec over the streaming server: v5.channel.k8s.io on a WebSocket (KEP-4006).

Three threads: the caller's receives, one sends standard input, one waits for changes of the
terminal's size.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from criagent.cli.containers.calls import CommandError

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE, _CLOSE = 0, 1, 2, 3, 4, 255
_PROTOCOL = "v5.channel.k8s.io"
_CHUNK = 32 << 10
_OPEN_S = 10


def run_session(url: str, *, certificate: Path | None, stdin: bool, terminal: bool) -> int:
    """The exit status of the command whose session is at `url`, an http or https address.

    Of an https address, exactly the configured certificate is accepted. Raises CommandError when
    the session fails.
    """
    from websockets.exceptions import ConnectionClosed, InvalidHandshake
    from websockets.sync.client import connect
    from websockets.typing import Subprotocol

    secure = url.startswith("https:")
    try:
        session = connect(
            "ws" + url.removeprefix("http"),
            subprotocols=[Subprotocol(_PROTOCOL)],
            ssl=_trust(certificate) if secure else None,
            compression=None,
            proxy=None,  # the server is on this node
            max_size=None,
            open_timeout=_OPEN_S,
        )
    except (OSError, InvalidHandshake, TimeoutError) as error:
        raise CommandError(
            f"the streaming server does not answer: {error}; check streaming.address and "
            "streaming.url_host"
        ) from None
    with session, _terminal(raw=terminal):
        if terminal:
            _watch_size(session)
        if stdin:
            threading.Thread(target=_send_stdin, args=(session,), daemon=True).start()
        try:
            return _receive(session)
        except ConnectionClosed as error:
            raise CommandError(f"the session was cut off: {error}") from None


def _trust(certificate: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False  # the address comes from the agent's own socket
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _receive(session: ClientConnection) -> int:
    """Write output until the server sends the outcome."""
    for message in session:
        data = message.encode() if isinstance(message, str) else message
        channel, content = data[:1], data[1:]
        if channel == bytes([_STDOUT]):
            _write(1, content)
        elif channel == bytes([_STDERR]):
            _write(2, content)
        elif channel == bytes([_ERROR]):
            return _outcome(content)
    raise CommandError("the session ended without an exit status")


def _outcome(content: bytes) -> int:
    """The exit status of a Status object (meta/v1); raises CommandError for any other failure."""
    status = json.loads(content)
    if status.get("status") == "Success":
        return 0
    for cause in status.get("details", {}).get("causes", ()):
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise CommandError(str(status.get("message", "the command failed")))


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _send_stdin(session: ClientConnection) -> None:
    from websockets.exceptions import ConnectionClosed

    with contextlib.suppress(ConnectionClosed):  # the command has ended
        while data := _read_stdin():
            session.send(bytes([_STDIN]) + data)
        session.send(bytes([_CLOSE, _STDIN]))


def _read_stdin() -> bytes:
    try:
        return os.read(0, _CHUNK)
    except OSError:  # of a terminal that has gone, or a closed descriptor
        return b""


def _watch_size(session: ClientConnection) -> None:
    """Send the size now and at each change.

    Any thread may get the signal, those of gRPC too; Python's own handler then writes to the
    wake-up descriptor.
    """
    changes, waking = socket.socketpair()
    waking.setblocking(False)  # noqa: FBT003 - positional only
    signal.signal(signal.SIGWINCH, lambda *_: None)
    signal.set_wakeup_fd(waking.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_send_sizes, args=(session, changes), daemon=True).start()


def _send_sizes(session: ClientConnection, changes: socket.socket) -> None:
    from websockets.exceptions import ConnectionClosed

    with contextlib.suppress(ConnectionClosed, OSError):
        while True:
            width, height = os.get_terminal_size(0)
            size = json.dumps({"Width": width, "Height": height}).encode()
            session.send(bytes([_RESIZE]) + size)
            changes.recv(_CHUNK)


@contextlib.contextmanager
def _terminal(*, raw: bool) -> Iterator[None]:
    """Standard input passes each key on while the session lasts."""
    if not raw:
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        sys.stdout.flush()
