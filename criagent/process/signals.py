# SPDX-License-Identifier: Apache-2.0
"""Signals of the daemon that do not end it: SIGHUP, SIGUSR1 and SIGUSR2.

SIGUSR1 writes what every thread and every task is doing to the log, as containerd and CRI-O do with
their goroutines. The handlers are Python's own and not the event loop's, so that they run also
while the loop is held up. A thread of its own writes the lines, since the signal may arrive in the
middle of another one. None is ignored by SIG_IGN, which children would inherit, containers too.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import structlog

from criagent.process import stacks

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def install(loop: asyncio.AbstractEventLoop, state: Callable[[], Mapping[str, Any]]) -> None:
    """Handle the three signals from now on; call it in the main thread, with its event loop.

    `state` gives further facts for SIGUSR1; it is called in a thread of its own.
    """

    def dump(_number: int, _frame: FrameType | None) -> None:
        args = (loop, state)
        threading.Thread(target=dump_stacks, args=args, name="stack-dump", daemon=True).start()

    signal.signal(signal.SIGUSR1, dump)
    signal.signal(signal.SIGUSR2, _noted)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup(1) leaves it
        signal.signal(signal.SIGHUP, _noted)  # until the agent serves; then it reloads


def dump_stacks(loop: asyncio.AbstractEventLoop, state: Callable[[], Mapping[str, Any]]) -> None:
    """One line of `state`, one for each thread, then one for each task of `loop`; all warnings.

    docs/inside.md shows how to read them.
    """
    log.warning("debug_state", **state())
    for thread, stack in stacks.threads().items():
        log.warning("thread_stack", thread=thread, stack=stack)
    for task, stack in stacks.tasks(loop):
        log.warning("task_stack", task=task, stack=stack)


def _noted(number: int, _frame: FrameType | None) -> None:
    """Live on. The log is written by a thread, as above."""
    name = signal.Signals(number).name
    cure = "the agent is starting; send it again when it serves" if name == "SIGHUP" else ""
    threading.Thread(
        target=log.warning, args=("signal_ignored",), kwargs={"signal": name, "cure": cure}
    ).start()
