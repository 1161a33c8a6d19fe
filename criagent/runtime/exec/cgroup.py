# SPDX-License-Identifier: Apache-2.0
"""The cgroup of one exec: a command that is killed takes all of its processes with it.

It lies beside init's, so that killing it affects nothing else of the container.
"""

from __future__ import annotations

import asyncio

import structlog

from criagent.base.aio import finish
from criagent.kernel import cgroupfs
from criagent.kernel.inotify import IN_MODIFY, Inotify

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_LIMIT_S = 2.0  # a process in an uninterruptible call may outlast any limit


async def kill_all(cgroup: str) -> None:
    """Kill everything in `cgroup` and await its end, for at most 2 s; then remove it.

    cgroup.kill only sends the signals: until the processes have died they stand in the container's
    process list, and keep the directory. The OCI runtime's own process must have ended before, or
    it could still start something. Fine when there is no such cgroup.
    """
    cgroupfs.kill(cgroup)
    if cgroupfs.populated(cgroup):
        await finish(_emptied(cgroup))
    cgroupfs.remove(cgroup)


async def _emptied(cgroup: str) -> None:
    """The kernel reports changes of `populated` to inotify (kernel documentation, cgroup-v2)."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    try:
        inotify = Inotify()
    except OSError as exc:
        log.warning("exec_end_not_observed", cgroup=cgroup, error=str(exc))
        return

    def readable() -> None:
        if any(True for _ in inotify.events()):
            changed.set()

    try:
        inotify.add(cgroupfs.directory(cgroup) / "cgroup.events", IN_MODIFY)
        loop.add_reader(inotify.fd, readable)
        async with asyncio.timeout(_LIMIT_S):
            while cgroupfs.populated(cgroup):
                await changed.wait()
                changed.clear()
    except FileNotFoundError:
        pass  # removed, and so empty
    except TimeoutError:
        log.warning(
            "exec_processes_survived_kill", cgroup=cgroup, pids=cgroupfs.processes(cgroup, most=10)
        )
    finally:
        loop.remove_reader(inotify.fd)
        inotify.close()
