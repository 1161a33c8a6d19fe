"""Signals of the daemon that do not end it: SIGHUP, SIGUSR1 and SIGUSR2.

SIGUSR1 writes what every thread and every task is doing to the log, as containerd and CRI-O do with
their goroutines. The handlers are Python's own and not the event loop's, so that they run also
while the loop is held up. A thread of its own writes the lines, since the signal may arrive in the
middle of another one. None is ignored by SIG_IGN, which children would inherit, containers too.
"""

from __future__ import annotations

import asyncio
import io
import signal
import sys
import threading
import traceback
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
    """One line for each thread, then one for each task of `loop`, at level warning."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - documented
        if ident != own:
            stack = "".join(traceback.format_stack(frame)[-_FRAMES:])
            log.warning("thread_stack", thread=names.get(ident, str(ident)), stack=_lines(stack))
    for task in asyncio.all_tasks(loop):
        text = io.StringIO()
        task.print_stack(limit=_FRAMES, file=text)
        log.warning("task_stack", task=task.get_name(), stack=_lines(text.getvalue()))


def _noted(number: int, _frame: FrameType | None) -> None:
    """Live on. The log is written by a thread, as above."""
    name = signal.Signals(number).name
    cure = "there is no reload: restart the agent, containers run on" if name == "SIGHUP" else ""
    threading.Thread(
        target=log.warning, args=("signal_ignored",), kwargs={"signal": name, "cure": cure}
    ).start()


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]
