# SPDX-License-Identifier: Apache-2.0
"""The end of a running container: its stop signal, the grace period, SIGKILL to all of its cgroup.

One task per container does it. A later call can only bring its deadline closer. The deadline is in
the row, so that a restarted daemon continues where the last one was. It is a time of
CLOCK_BOOTTIME: setting the wall clock neither shortens nor extends a grace period.
"""

from __future__ import annotations

import asyncio
import signal
import time
from concurrent.futures import Executor
from functools import partial
from typing import Any

import structlog

from criagent.base import faults
from criagent.base.aio import Owner, alongside, run_in
from criagent.base.errors import TimedOutError
from criagent.kernel import process
from criagent.model.container import Container
from criagent.runtime.container.exits import ExitWatcher
from criagent.runtime.container.keys import Act, Checkpoints, Ending, Endings, Starts
from criagent.runtime.container.transitions import Transitions
from criagent.runtime.node import own_cgroup
from criagent.runtime.nri.door import Plugins
from criagent.runtime.spec.signals import signal_number

_KILL_LIMIT_S = 60.0  # a process in uninterruptible sleep does not die at once

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ContainerEnding:
    """Ends containers for Stop, Remove and recovery."""

    def __init__(
        self,
        *,
        endings: Endings,
        checkpoints: Checkpoints,
        starts: Starts,
        exits: ExitWatcher,
        transitions: Transitions,
        plugins: Plugins,
        fs: Executor,
    ) -> None:
        self._endings = endings
        self._checkpoints = checkpoints
        self._starts = starts
        self._exits = exits
        self._transitions = transitions
        self._plugins = plugins
        self._fs = fs
        self._deadlines: dict[str, int] = {}
        self._earlier: dict[str, asyncio.Event] = {}

    async def stop_by(self, container: Container, deadline_ns: int) -> None:
        """Return when the container has exited. SIGKILL comes at `deadline_ns` of CLOCK_BOOTTIME,
        or at an earlier deadline that it has.

        Raises TimedOutError when even SIGKILL does not end it within a minute, UnavailableError
        and similar errors when it ended but that cannot be written.
        """
        if container.stop_deadline_boot_ns:
            deadline_ns = min(deadline_ns, container.stop_deadline_boot_ns)
        known = self._deadlines.get(container.id)
        if known is None or deadline_ns < known:
            self._deadlines[container.id] = deadline_ns
            if container.id in self._earlier:
                self._earlier[container.id].set()
        key = Ending(Act.STOP_CONTAINER, container.id)
        await self._endings.run(key, partial(self._stop, container))

    async def _stop(self, container: Container, owner: Owner[Ending, None]) -> None:
        if container.restored and not container.started_at_ns:
            owner.stage = "restore"
            await self._starts.cancel(container.id.__eq__)
            container = self._transitions.store.get(container.id) or container
        earlier = self._earlier[container.id] = asyncio.Event()
        try:
            async with (
                alongside(self._exits.exited(container)) as exited,
                alongside(self._checkpoints.cancel(container.id.__eq__)),
            ):
                await self._end(container, owner, exited, earlier)
        finally:
            del self._earlier[container.id]
            self._deadlines.pop(container.id, None)
        if self._plugins.active:
            owner.stage = "NRI plugins"
            await self._plugins.container_stopped(container.id)
        log.info("container_stopped", container_id=container.id)

    async def _end(
        self,
        container: Container,
        owner: Owner[Ending, None],
        exited: asyncio.Future[None],
        earlier: asyncio.Event,
    ) -> None:
        if self._left_s(container.id) > 0 and container.started_at_ns:
            owner.stage = f"grace period after {container.stop_signal}"
            await self._transitions.apply(
                container.id, stop_deadline_boot_ns=self._deadlines[container.id]
            )
            faults.reach("container-stop:deadline")
            signalled = _signal(container, signal_number(container.stop_signal))
            log.info("container_stopping", container_id=container.id, signal=container.stop_signal)
            faults.reach("container-stop:signalled")
            if signalled:
                await self._grace(container.id, exited, earlier)
        if not exited.done():
            owner.stage = "SIGKILL"
            await self._kill(container, exited)
        await exited
        faults.reach("container-stop:exited")

    async def _grace(
        self, container_id: str, exited: asyncio.Future[None], earlier: asyncio.Event
    ) -> None:
        while not exited.done() and (left := self._left_s(container_id)) > 0:
            earlier.clear()
            async with alongside(earlier.wait()) as sooner:
                either: set[asyncio.Future[Any]] = {exited, sooner}
                await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    async def _kill(self, container: Container, exited: asyncio.Future[None]) -> None:
        _signal(container, signal.SIGKILL)
        await run_in(self._fs, own_cgroup.kill, container.cgroup, container.id)
        faults.reach("container-stop:killed")
        done, _ = await asyncio.wait({exited}, timeout=_KILL_LIMIT_S)
        if not done:
            raise TimedOutError(
                f"container {container.id} did not end {_KILL_LIMIT_S:.0f} s after SIGKILL; one "
                "of its processes may hang in the kernel, for example on an unreachable network "
                "file system"
            )

    def _left_s(self, container_id: str) -> float:
        return (self._deadlines[container_id] - boot_ns()) / 1e9


def _signal(container: Container, number: int) -> bool:
    """Signal the main process; False when its security profile blocks our signals.

    An AppArmor profile can do that even to root. cgroup.kill asks no profile.
    """
    try:
        if container.init is not None:
            process.send_signal(container.init, number)
    except PermissionError:
        log.warning("signal_not_permitted", container_id=container.id, signal=number)
        return False
    return True


def boot_ns() -> int:
    """The time of CLOCK_BOOTTIME now."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
