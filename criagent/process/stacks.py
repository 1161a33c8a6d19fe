# SPDX-License-Identifier: Apache-2.0
"""What every thread and every task is doing. A stack is a list of "file:line function".

That of a thread goes from the outermost call to the innermost, that of a task from its coroutine
along what each one awaits. Callable from any thread.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from types import FrameType

_FRAMES = 20  # of each stack, the innermost


def threads() -> dict[str, list[str]]:
    """The stack of every thread but the caller's, by the thread's name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    return {
        names.get(ident, str(ident)): _calls(frame)
        for ident, frame in sys._current_frames().items()  # noqa: SLF001 - documented
        if ident != own
    }


def tasks(loop: asyncio.AbstractEventLoop) -> list[tuple[str, list[str]]]:
    """The name and the stack of every task of `loop`."""
    return [(task.get_name(), _awaits(task.get_coro())) for task in asyncio.all_tasks(loop)]


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
