# SPDX-License-Identifier: Apache-2.0
"""Exits: conmon's end makes its exit file final; the file becomes the row, the row the event.

A monitor that was killed leaves no file. Its container would keep running without a reader of its
output, so it is killed and its reason is ContainerMonitorLost. Everything is read from files and
pidfds, so adopted monitors and children are treated alike. An exit that cannot be written is tried
again, first after a second and finally every minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from criagent.base.aio import detached, run_in
from criagent.kernel import process
from criagent.model.common import NamespaceMode
from criagent.model.container import Container, Reason
from criagent.process.child import Child, ended
from criagent.runtime.container.keys import Starts
from criagent.runtime.container.oom import KILLED_CODE, OomWatch
from criagent.runtime.container.transitions import Transitions
from criagent.runtime.node import own_cgroup
from criagent.runtime.node.clock import Clock
from criagent.runtime.node.paths import RuntimePaths
from criagent.store.containers import ContainerStore

_FILE_LIMIT_S = 1.0  # 2500 of 2500 exit files were there when the monitor's pidfd fired
_FILE_LOOK_S = 0.05
_START_LIMIT_S = 10.0  # a process that has ended may precede the end of the runtime that started it
_RETRY_S = 1.0
_RETRY_MOST_S = 60.0
LOST_CODE = 255

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ExitWatcher:
    """Watches the monitors of all live containers."""

    def __init__(
        self,
        *,
        store: ContainerStore,
        transitions: Transitions,
        paths: RuntimePaths,
        oom: OomWatch,
        starts: Starts,
        clock: Clock,
        fs: Executor,
        boot_id: str,
    ) -> None:
        self._store = store
        self._transitions = transitions
        self._paths = paths
        self._oom = oom
        self._starts = starts
        self._clock = clock
        self._fs = fs
        self._boot_id = boot_id
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._retries: dict[str, asyncio.TimerHandle] = {}

    def of_this_boot(self, container: Container) -> bool:
        """Whether its processes may be alive: those of an earlier boot died with it."""
        return container.boot_id == self._boot_id

    def watch_child(self, container: Container, child: Child) -> None:
        """Watch a monitor that was just started, unless a stop came first and does."""
        self._start(container, child)

    def adopt(self, container: Container) -> None:
        """Watch the monitor of a container from an earlier daemon, unless it is already watched."""
        self._start(container, None)

    async def exited(self, container: Container) -> None:
        """Return once the container's exit is in its row; starts watching it if necessary.

        Raises the error that kept the exit from being written; writing is retried in any case.
        """
        self.adopt(container)
        await asyncio.shield(self._tasks[container.id])

    async def close(self) -> None:
        """Stop watching; the monitors hold the exit codes."""
        for retry in self._retries.values():
            retry.cancel()
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._oom.close()

    def _start(self, container: Container, child: Child | None, retry_s: float = _RETRY_S) -> None:
        if container.id in self._tasks:
            return
        watching = self._watch(container, child, retry_s)
        # The pod of a new container is known although no label names it.
        bound = structlog.contextvars.get_contextvars()
        facts: dict[str, Any] = {key: bound[key] for key in ("pod", "pod_uid") if key in bound}
        task = detached(watching, name=f"exit:{container.id}", **(facts | container.facts))
        self._tasks[container.id] = task
        task.add_done_callback(partial(self._ended, container.id))
        if container.cgroup:
            self._oom.watch(container.id, container.cgroup)

    def _ended(self, container_id: str, task: asyncio.Task[None]) -> None:
        del self._tasks[container_id]
        if not task.cancelled():
            task.exception()  # was logged

    async def _watch(self, container: Container, child: Child | None, retry_s: float) -> None:
        if child is not None:
            await child.wait()
        elif container.monitor is not None and self.of_this_boot(container):
            await ended(container.monitor)
        start = self._starts.get(container.id)
        if start is not None and start.task is not None:  # its row comes first, then its event
            await asyncio.wait({start.task}, timeout=_START_LIMIT_S)
        now = self._store.get(container.id)
        if now is None or not now.ready_at_ns or now.finished_at_ns:
            return
        try:
            await self._settle(now)
        except Exception as failure:
            log.exception(
                "exit_not_written",
                container_id=container.id,
                error=repr(failure),
                again_in_s=retry_s,
            )
            self._retry(container, retry_s)
            raise

    def _retry(self, container: Container, delay_s: float) -> None:
        def again() -> None:
            del self._retries[container.id]
            self._start(container, None, min(2 * delay_s, _RETRY_MOST_S))

        if (earlier := self._retries.pop(container.id, None)) is not None:
            earlier.cancel()
        self._retries[container.id] = asyncio.get_running_loop().call_later(delay_s, again)

    async def _settle(self, container: Container) -> None:
        """Write the exit of a container whose monitor has ended."""
        file = self._paths.exit_file(container.id)
        code, finished_ns = await self._code(container, file)
        reason = ""
        if code is None and container.monitor is None and self.of_this_boot(container):
            code, finished_ns = KILLED_CODE, self._clock.now_ns()  # it was never restored
        if code is None:
            if self.of_this_boot(container) and process.alive(container.init):
                reason = Reason.MONITOR_LOST
                self._kill(container)
            else:
                reason = Reason.UNKNOWN
            code, finished_ns = LOST_CODE, self._clock.now_ns()
        if container.spec.security.namespaces.pid is not NamespaceMode.CONTAINER:
            # Nothing else ends its children.
            await run_in(self._fs, own_cgroup.kill, container.cgroup, container.id)
        kills = self._oom_kills(container, code)
        if not reason:
            reason = Reason.ERROR if code else Reason.COMPLETED
            if kills:
                reason = Reason.OOM_KILLED
        await self._transitions.apply(
            container.id,
            finished_at_ns=finished_ns,
            exit_code=code,
            reason=str(reason),
            message=_message(reason),
            stop_deadline_boot_ns=0,
            oom_kills_seen=kills,
        )
        self._oom.forget(container.id)  # the kills that it counted are in the row
        log.info("container_exited", container_id=container.id, code=code, reason=str(reason))

    async def _code(self, container: Container, file: Path) -> tuple[int | None, int]:
        """Exit code and time from conmon's file; (None, 0) when there is no file."""
        limit = asyncio.get_running_loop().time() + _FILE_LIMIT_S
        while True:
            code, finished_ns = await run_in(self._fs, _read_exit, file)
            known = container.monitor is None or not self.of_this_boot(container)
            if code is not None or known:
                return code, max(finished_ns, container.started_at_ns, container.created_at_ns)
            if asyncio.get_running_loop().time() > limit:
                return None, 0
            await asyncio.sleep(_FILE_LOOK_S)

    def _kill(self, container: Container) -> None:
        log.warning("monitor_lost", container_id=container.id)
        if container.init is not None:
            with contextlib.suppress(
                PermissionError
            ):  # blocked by a security profile: cgroup.kill asks none
                process.send_signal(container.init, signal.SIGKILL)
        own_cgroup.kill(container.cgroup, container.id)

    def _oom_kills(self, container: Container, code: int) -> int:
        if not container.cgroup:
            return 0
        kills = self._oom.kills(container.id, container.cgroup, code=code)
        if kills or code != KILLED_CODE or self._oom.could_look(container.id, container.cgroup):
            return kills
        # The monitor's report, which may mean no more than that memory ran short.
        return int(self._paths.oom_file(container.id).exists())


def _read_exit(file: Path) -> tuple[int | None, int]:
    try:
        text = file.read_text()
        return int(text), file.stat().st_mtime_ns
    except (FileNotFoundError, ValueError):
        return None, 0


def _message(reason: str) -> str:
    if reason == Reason.MONITOR_LOST:
        return "the container's monitor (conmon) was killed, so the container was stopped"
    if reason == Reason.UNKNOWN:
        return (
            "the exit code was lost because the node rebooted, or because the monitor left no "
            "exit file"
        )
    return ""
