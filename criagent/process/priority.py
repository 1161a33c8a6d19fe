# SPDX-License-Identifier: Apache-2.0
"""Scheduling priority of this process's threads, which none of its children inherit."""

from __future__ import annotations

import contextlib
import os
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


def raise_all_threads() -> None:
    """The same for every thread that there is, those of libraries too. Raises PermissionError."""
    for entry in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            raise_thread(int(entry.name))
