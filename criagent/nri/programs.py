# SPDX-License-Identifier: Apache-2.0
"""Programs that the agent starts as plugins: found in a directory, connected from the start."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import structlog

from criagent.base.aio import supervised
from criagent.config.nri_section import Nri
from criagent.nri.plugin import Identity
from criagent.nri.session import Host, Session
from criagent.nri.wire.link import Peer
from criagent.process.child import Options, Pipes, killed_on_exit, spawn
from criagent.process.pipe_ends import up_to

_CONFIG_MOST = 1 << 20
_ERRORS_MOST = 4 << 10
_WASM = b"\0asm"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Program:
    """A program that is a plugin while it runs."""

    def __init__(self, host: Host, identity: Identity, path: Path, config: str) -> None:
        self._host = host
        self._identity = identity
        self._path = path
        self._config = config
        self.session: Session | None = None
        self.task = supervised(self._run(), name="nri-program")
        # Done when it takes part, or will not.
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task.add_done_callback(lambda _: self._settle())

    async def _run(self) -> None:
        """Start it, and kill it when its connection ends."""
        local, remote = socket.socketpair()
        environment = {
            "NRI_PLUGIN_NAME": self._identity.name,
            "NRI_PLUGIN_IDX": self._identity.index,
            "NRI_PLUGIN_SOCKET": str(remote.fileno()),
        }
        with Pipes() as pipes:
            pipes.pass_fds = (remote.fileno(),)
            errors = pipes.errors(up_to(_ERRORS_MOST))
            try:
                child = spawn([self._path], pipes, Options(env=environment, new_session=True))
            except OSError as error:
                local.close()
                reason = f"it cannot be executed: {error.strerror}"
                log.error("nri_program_ignored", path=str(self._path), reason=reason)  # noqa: TRY400
                return
            finally:
                remote.close()
            async with killed_on_exit(child, group=True):
                streams = await asyncio.open_unix_connection(sock=local)
                self.session = Session(
                    self._host,
                    streams,
                    Peer(child.pid, os.getuid()),
                    identity=self._identity,
                    config=self._config,
                )
                self.session.settled.add_done_callback(lambda _: self._settle())
                await self.session.run()
            log.warning(
                "nri_program_ended",
                path=str(self._path),
                status=await child.wait(),
                errors=errors.taken().decode(errors="replace"),
            )

    def _settle(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)


def launched(section: Nri, host: Host) -> list[Program]:
    """Every program of the directory, started; what cannot be one is logged."""
    started = []
    for identity, path in _found(section.plugin_path):
        try:
            with path.open("rb") as file:
                if file.read(len(_WASM)) == _WASM:
                    raise ValueError("WebAssembly is not supported")
            config = _config(section.plugin_config_path, identity)
        except (OSError, ValueError) as error:
            _ignored(path, error)
        else:
            started.append(Program(host, identity, path, config))
    return started


def _found(folder: Path) -> Iterator[tuple[Identity, Path]]:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    except OSError as error:
        _ignored(folder, error)
        return
    for name in names:
        path = folder / name
        try:
            if path.is_file() and os.access(path, os.X_OK):
                yield Identity.of_file(name), path
        except (OSError, ValueError) as error:
            _ignored(path, error)


def _config(folder: Path, identity: Identity) -> str:
    """The configuration of a program, "" = it has none. Raises OSError, ValueError."""
    for name in (f"{identity}.conf", f"{identity.name}.conf"):
        try:
            with (folder / name).open("rb") as file:
                data = file.read(_CONFIG_MOST + 1)
        except FileNotFoundError:
            continue
        if len(data) > _CONFIG_MOST:
            raise ValueError(f"its configuration {folder / name} is larger than 1 MiB")
        return data.decode()
    return ""


def _ignored(path: Path, error: Exception) -> None:
    log.error("nri_program_ignored", path=str(path), reason=str(error))
