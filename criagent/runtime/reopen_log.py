"""ReopenContainerLog: conmon opens the log anew under its name, after the kubelet renamed it.

conmon gives no acknowledgement, so the new file is awaited in its directory.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
from concurrent.futures import Executor
from pathlib import Path

from criagent.aio import run_in
from criagent.errors import AgentError, ExhaustedError, TimedOutError, WrongStateError
from criagent.kernel.inotify import IN_MOVED_TO, Inotify
from criagent.model import ContainerState
from criagent.runtime.paths import RuntimePaths
from criagent.store.containers import ContainerStore

_LIMIT_S = 10.0
_REOPEN = b"2 0 0\n"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogReopener:
    """The ReopenContainerLog verb."""

    store: ContainerStore
    paths: RuntimePaths
    fs: Executor

    async def reopen(self, container_id: str) -> None:
        """Return when the container writes to a new file of its log's name.

        Raises NotFoundError, WrongStateError when it is not running, ExhaustedError when the disk
        is full (conmon would die of it), TimedOutError.
        """
        row = self.store.resolve(container_id)
        if row.state is not ContainerState.RUNNING:
            raise WrongStateError(f"container {row.id} is not running; its log stays closed")
        if not row.log_path:
            return
        log = Path(row.log_path)
        await run_in(self.fs, _check_directory, log)
        inotify = Inotify()
        loop = asyncio.get_running_loop()
        seen = asyncio.Event()

        def readable() -> None:
            if any(name == log.name for _, _, name in inotify.events()):
                seen.set()

        try:
            inotify.add(log.parent, IN_MOVED_TO)
            loop.add_reader(inotify.fd, readable)
            await run_in(self.fs, _tell, self.paths.container(row.id) / "ctl", row.id)
            async with asyncio.timeout(_LIMIT_S):
                await seen.wait()
        except TimeoutError:
            raise TimedOutError(f"conmon of container {row.id} did not reopen {log}") from None
        finally:
            loop.remove_reader(inotify.fd)
            inotify.close()


def _check_directory(log: Path) -> None:
    try:
        facts = os.statvfs(log.parent)
    except FileNotFoundError:
        raise AgentError(f"the log directory {log.parent} is gone; restart the container") from None
    if not facts.f_bavail:
        raise ExhaustedError(f"no space left on {log.parent} for a new log file")


def _tell(control: Path, container_id: str) -> None:
    try:
        fd = os.open(control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in {errno.ENXIO, errno.ENOENT}:
            raise WrongStateError(f"container {container_id} has just exited") from None
        raise
    try:
        os.write(fd, _REOPEN)
    finally:
        os.close(fd)
