# SPDX-License-Identifier: Apache-2.0
"""Named points at which tests make the daemon die or a step fail.

Each step of a verb calls `reach("verb:step")` right after it took effect, and `aio.Rollback` calls
`reach("verb:undo-step")` right before each undo. Unarmed, that is one look-up in an empty dict. The
daemon arms points from `debug.kill_at` and `debug.fail_at`: `tests/crash` proves that a SIGKILL at
any of them loses and leaks nothing, `tests/e2e/test_failed_undo.py` that a step or an undo that
fails leaves nothing that cannot be removed.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Sequence

_KILL = "SIGKILL"
_CANCEL = "cancel"

_armed: dict[str, str] = {}


def arm(kill_at: str | None, fail_at: Sequence[str] = ()) -> None:
    """Die by SIGKILL when `kill_at` is reached, and fail once at each point of `fail_at`.

    An entry is "POINT=ENOSPC" (any name of errno), "POINT=cancel" for a CancelledError, or "POINT"
    for EIO. Earlier points are disarmed. Raises ValueError for an unknown failure.
    """
    failures = dict(map(failure, fail_at))
    _armed.clear()
    _armed.update(failures)
    if kill_at:
        _armed[kill_at] = _KILL


def reach(point: str) -> None:
    """Mark `point` as reached.

    Does not return when the point is armed to kill. When armed to fail, it raises OSError or
    asyncio.CancelledError, once.
    """
    if point in _armed:
        _act(point)


def _act(point: str) -> None:
    what = _armed.pop(point)
    if what == _KILL:
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()
    if what == _CANCEL:
        import asyncio  # not needed by processes that never arm a point

        raise asyncio.CancelledError(f"injected at {point}")
    number: int = getattr(errno, what)
    raise OSError(number, f"injected: {os.strerror(number)}", point)


def failure(entry: str) -> tuple[str, str]:
    """The point of an entry of `fail_at` and its failure. Raises ValueError."""
    point, _, what = entry.partition("=")
    what = what or "EIO"
    if what != _CANCEL and not isinstance(getattr(errno, what, None), int):
        raise ValueError(f"{entry!r}: {what!r} is neither a name of errno nor {_CANCEL!r}")
    return point, what
