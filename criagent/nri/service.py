# SPDX-License-Identifier: Apache-2.0
"""NRI with its plugins: the programs that the agent starts, and the socket of all others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from criagent.base.aio import settle, supervised
from criagent.config.nri_section import Nri

if TYPE_CHECKING:
    from criagent.nri.programs import Program
    from criagent.nri.session import Host, Session

_SESSIONS_MOST = 128
_AGAIN_S = 30.0
_SHUTDOWN_S = 1.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class NriService:
    """Starts after recovery, when there is something to tell, and before calls are served.

    `host` is asked for when there is a plugin, and what serves it is imported then.
    """

    def __init__(self, section: Nri, host: Callable[[], Host]) -> None:
        self._section = section
        self._host = host
        self._programs: list[Program] = []
        self._sessions: dict[Session, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._retrying: asyncio.Task[None] | None = None
        self.problem = ""  # why the socket is not served, "" = it is, or need not be

    async def start(self) -> None:
        """Start the programs, wait until each takes part or will not, and serve the socket."""
        if _has_entries(self._section.plugin_path):
            from criagent.nri.programs import launched

            self._programs = launched(self._section, self._host())
        await asyncio.gather(*(program.settled for program in self._programs))
        if not self._section.disable_connections and not await self._listen():
            self._retrying = supervised(self._keep_trying(), name="nri-socket")

    async def stop(self) -> None:
        """Tell plugins, and end everything."""
        if self._retrying is not None:
            await settle(self._retrying)
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                if self._section.socket_path.stat().st_ino == self._inode:
                    self._section.socket_path.unlink()
        sessions = [*self._sessions, *(one.session for one in self._programs if one.session)]
        await asyncio.gather(*(session.shut_down(_SHUTDOWN_S) for session in sessions))
        await settle(*self._sessions.values(), *(program.task for program in self._programs))

    async def _listen(self) -> bool:
        path = self._section.socket_path
        self.problem = taken(path)
        if self.problem:
            return False
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.unlink(missing_ok=True)
            mask = os.umask(0o177)  # from the first moment 0600
            try:
                self._server = await asyncio.start_unix_server(self._accept, path)
            finally:
                os.umask(mask)
            self._inode = path.stat().st_ino
        except OSError as error:
            self.problem = f"{path} cannot be served: {error.strerror or error}"
            return False
        log.info("nri_serving", socket=str(path))
        return True

    async def _keep_trying(self) -> None:
        """Pods do not depend on plugins: a taken socket is tried again until it is free."""
        log.error("nri_not_served", reason=self.problem, again_in_s=_AGAIN_S)
        while True:
            await asyncio.sleep(_AGAIN_S)
            if await self._listen():
                return

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._sessions) >= _SESSIONS_MOST:
            log.warning("nri_connection_refused", connected=len(self._sessions))
            writer.transport.abort()
            return
        from criagent.nri.session import Session
        from criagent.nri.wire.link import peer_of

        peer = peer_of(writer.get_extra_info("socket"))
        session = Session(self._host(), (reader, writer), peer)
        task = self._sessions[session] = supervised(session.run(), name="nri-plugin")
        task.add_done_callback(lambda _: self._sessions.pop(session, None))


def _has_entries(folder: Path) -> bool:
    """Whether there may be programs; also when that cannot be told."""
    try:
        return bool(os.listdir(folder))
    except FileNotFoundError:
        return False
    except OSError:
        return True


def taken(path: Path) -> str:
    """Why the socket cannot be made, "" = it can. A stale one is no reason."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path}: {error.strerror}"
    if not stat.S_ISSOCK(mode):
        return f"{path} exists and is not a socket; remove it, or change nri.socket_path"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
        client.setblocking(False)  # noqa: FBT003 - a full queue is an answer, too
        try:
            client.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return ""
        except BlockingIOError:
            pass
        except OSError as error:
            return f"{path}: {error.strerror}"
    return (
        f"another program, perhaps containerd or CRI-O, serves NRI plugins on {path}; stop it, or "
        "set nri.socket_path to another path"
    )
