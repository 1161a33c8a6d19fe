"""Named crash points, for the proof that a SIGKILL at any of them loses and leaks nothing.

Each step of a verb calls `reach("verb:step")` right after it took effect. Unarmed, that is one
comparison. The daemon arms a point from `debug.kill_at`; `tests/crash` walks through all of them.
"""

from __future__ import annotations

import os
import signal

_armed: str | None = None


def arm(point: str | None) -> None:
    """From now on die by SIGKILL when `point` is reached; None disarms."""
    global _armed  # noqa: PLW0603 - process-wide by nature, like the signal it sends
    _armed = point


def reach(point: str) -> None:
    """Mark `point` as reached. Does not return when the point is armed."""
    if point == _armed:
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()
