# SPDX-License-Identifier: Apache-2.0
"""ReopenContainerLog: conmon reopens the log under its name, after the kubelet renamed it.

conmon opens `<log>.tmp` and renames it over the log, whatever is there; it dies when it cannot, and
reports nothing when it can. So a log that it still writes to stays as it is, a foreign file is
moved aside first, the opening is rehearsed, conmon's descriptor shows that it is done, and a
command that it did not read in time is withdrawn: the kubelet then gives the log its old name
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import time
from concurrent.futures import Executor
from pathlib import Path

from criagent.base import faults
from criagent.base.aio import Owners, run_in
from criagent.base.errors import AgentError, ExhaustedError, TimedOutError, WrongStateError
from criagent.kernel import process
from criagent.kernel.inotify import IN_MOVED_TO, Inotify
from criagent.model.container import Container, ContainerId, ContainerState
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci import conmon_control as monitor_control
from criagent.store.containers import ContainerStore

_LIMIT_S = 10.0
_LOOK_S = 0.25  # for a monitor that died meanwhile; inotify reports its success
_REOPEN = b"2 0 0\n"
_FULL = {errno.ENOSPC, errno.EDQUOT}

Reopenings = Owners[ContainerId, None]


class LogReopener:
    """The ReopenContainerLog verb."""

    def __init__(
        self, *, store: ContainerStore, paths: RuntimePaths, reopenings: Reopenings, fs: Executor
    ) -> None:
        self._store = store
        self._paths = paths
        self._reopenings = reopenings
        self._fs = fs

    async def reopen(self, container_id: str) -> None:
        """Return when the container writes to the file of its log's name, a new one if necessary.

        Raises NotFoundError, WrongStateError when it is not running, ExhaustedError when the disk
        is full and AgentError when the file cannot be created (conmon would die of either),
        TimedOutError. After an error the container continues to write to its previous file.
        """
        container = self._store.resolve(container_id)
        while (owner := self._reopenings.get(container.id)) is not None and owner.task is not None:
            await asyncio.wait({owner.task})  # it may have begun before our caller's rename
        await self._reopenings.join(
            self._reopenings.start(container.id, None, lambda _: self._reopen(container))
        )

    async def _reopen(self, container: Container) -> None:
        if container.state is not ContainerState.RUNNING:
            raise WrongStateError(
                f"container {container.id} is not running; its log is not reopened"
            )
        if not container.log_path:
            return
        log = Path(container.log_path)
        if await run_in(self._fs, _written_by_monitor, container, log):
            return  # conmon would replace it, and its lines would be lost
        await run_in(self._fs, _rehearse, log)
        faults.reach("reopen-log:rehearsed")
        control = self._paths.container(container.id) / "ctl"
        renamed = asyncio.Event()
        loop = asyncio.get_running_loop()
        inotify = Inotify()

        def readable() -> None:
            if any(name == log.name for _, _, name in inotify.events()):
                renamed.set()

        try:
            inotify.add(log.parent, IN_MOVED_TO)
            loop.add_reader(inotify.fd, readable)
            await _tell(control, container.id, log)
            faults.reach("reopen-log:told")
            await self._reopened(container, log, renamed)
        except BaseException:
            await run_in(self._fs, _take_back, control, log)
            raise
        finally:
            loop.remove_reader(inotify.fd)
            inotify.close()

    async def _reopened(self, container: Container, log: Path, renamed: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(_LIMIT_S):
                while not await run_in(self._fs, _written_by_monitor, container, log):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(renamed.wait(), _LOOK_S)
                    renamed.clear()
        except TimeoutError:
            raise TimedOutError(
                f"conmon of container {container.id} did not reopen {log} within {_LIMIT_S:.0f} s"
            ) from None


def _written_by_monitor(container: Container, log: Path) -> bool:
    """Whether the monitor has the file of this name open. Raises WrongStateError without one."""
    if container.monitor is None or not process.alive(container.monitor):
        raise WrongStateError(f"container {container.id} has just exited; its log is not reopened")
    try:
        wanted = log.stat()
        for entry in os.scandir(f"/proc/{container.monitor.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat()
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    except (FileNotFoundError, ProcessLookupError):
        pass
    return False


def _rehearse(log: Path) -> None:
    """Create conmon's temporary file, and room under the log's name."""
    try:
        if not os.statvfs(log.parent).f_bavail:
            raise ExhaustedError(f"no space left on {log.parent} for a new log file")
        with contextlib.suppress(FileNotFoundError):
            facts = log.lstat()
            if stat.S_ISDIR(facts.st_mode):
                raise AgentError(f"{log}, the path of the log, is a directory; remove it")
            if facts.st_size:
                log.rename(_free_name(log))
        fd = os.open(
            _temporary(log), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640
        )
        os.close(fd)
    except FileNotFoundError:
        raise AgentError(
            f"the log directory {log.parent} does not exist; restart the container"
        ) from None
    except OSError as exc:
        problem = f"log {log} cannot be created: {exc.strerror}"
        raise (ExhaustedError(problem) if exc.errno in _FULL else AgentError(problem)) from None


def _temporary(log: Path) -> Path:
    return log.with_name(f"{log.name}.tmp")


def _free_name(log: Path) -> Path:
    """A free name like those of the kubelet for rotated logs, so that the kubelet cleans up."""
    name = f"{log.name}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    found, number = log.with_name(name), 0
    while found.exists():
        number += 1
        found = log.with_name(f"{name}.{number}")
    return found


async def _tell(control: Path, container_id: str, log: Path) -> None:
    try:
        await monitor_control.send(control, _REOPEN)
    except WrongStateError:
        raise WrongStateError(
            f"container {container_id} has just exited; its log {log} is not reopened"
        ) from None


def _take_back(control: Path, log: Path) -> None:
    """Withdraw a command that conmon has not read; others in the FIFO stay."""
    with contextlib.suppress(OSError):
        fd = os.open(control, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            lines = os.read(fd, 1 << 16).splitlines(keepends=True)
            os.write(fd, b"".join(line for line in lines if line != _REOPEN))
        finally:
            os.close(fd)
    with contextlib.suppress(OSError):
        if not _temporary(log).lstat().st_size:
            _temporary(log).unlink()
