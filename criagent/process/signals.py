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
import sys
import threading
from types import FrameType

import structlog

_FRAMES = 20  # of each stack, the innermost

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Handle the three signals from now on; call it in the main thread, with its event loop."""

    def dump(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=dump_stacks, args=(loop,), name="stack-dump", daemon=True).start()

    signal.signal(signal.SIGUSR1, dump)
    signal.signal(signal.SIGUSR2, _noted)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup(1) leaves it
        signal.signal(signal.SIGHUP, _noted)


def dump_stacks(loop: asyncio.AbstractEventLoop) -> None:
    """One line for each thread, then one for each task of `loop`, at level warning.

    A stack is a list of "file:line function": of a thread from the outermost call to the innermost,
    of a task from its coroutine along what each one awaits.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - documented
        if ident != own:
            thread = names.get(ident, str(ident))
            log.warning("thread_stack", thread=thread, stack=_calls(frame))
    for task in asyncio.all_tasks(loop):
        log.warning("task_stack", task=task.get_name(), stack=_awaits(task.get_coro()))


def _calls(frame: FrameType | None) -> list[str]:
    places: list[str] = []
    while frame is not None and len(places) < _FRAMES:
        places.append(_place(frame))
        frame = frame.f_back
    return places[::-1]


def _awaits(work: object) -> list[str]:
    """Along cr_await and its like; gRPC's compiled coroutines have no line, futures no frame."""
    places: list[str] = []
    while work is not None and len(places) < _FRAMES:
        kind = next((k for k in ("cr", "gi", "ag") if hasattr(work, f"{k}_frame")), "")
        frame = getattr(work, f"{kind}_frame", None)
        places.append(_place(frame) if frame is not None else type(work).__name__)
        following = {"cr": "cr_await", "gi": "gi_yieldfrom", "ag": "ag_await"}.get(kind, "")
        work = getattr(work, following, None)
    return places


def _place(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno or 0} {code.co_name}"


def _noted(number: int, _frame: FrameType | None) -> None:
    """Live on. The log is written by a thread, as above."""
    name = signal.Signals(number).name
    cure = (
        "the configuration cannot be reloaded; restart the agent to apply changes "
        "(containers keep running)"
        if name == "SIGHUP"
        else ""
    )
    threading.Thread(
        target=log.warning, args=("signal_ignored",), kwargs={"signal": name, "cure": cure}
    ).start()
