# SPDX-License-Identifier: Apache-2.0
"""Scheduling priority of this process's threads, which none of its children inherit."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

_NICE = -10  # a latency of a millisecond or two beside many busy processes of nice 0


def raise_thread(thread_id: int = 0) -> None:
    """Nice -10 for one of our threads (0: this one). Raises PermissionError without CAP_SYS_NICE.

    With SCHED_RESET_ON_FORK what it starts has nice 0 again (man 7 sched).
    """
    flags = os.SCHED_OTHER | os.SCHED_RESET_ON_FORK
    os.sched_setscheduler(thread_id, flags, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, thread_id, _NICE)


def raise_new_thread() -> None:
    """The same for a new thread, where it is allowed: the initializer of executors."""
    with contextlib.suppress(PermissionError):
        raise_thread()


def pool(threads: int, name: str) -> ThreadPoolExecutor:
    """An executor whose threads have that priority, and all run from now on.

    One that is started later, without memory, may never take its first step, and the executor would
    wait for it for ever (CPython issue 140746).
    """
    started = threading.Barrier(threads)
    executor = ThreadPoolExecutor(threads, name, initializer=raise_new_thread)
    wait([executor.submit(started.wait) for _ in range(threads)])
    return executor


def raise_all_threads() -> None:
    """The same for every thread that there is, those of libraries too. Raises PermissionError."""
    for entry in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            raise_thread(int(entry.name))
