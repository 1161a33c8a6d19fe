# SPDX-License-Identifier: Apache-2.0
"""Short commands whose answers are facts of this node."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from criagent.process.child import Ended, run

_LIMIT_S = 10.0


def ended(argv: Sequence[str | Path]) -> Ended | None:
    """The end of a command; None when it cannot be run, or did not end within ten seconds."""
    try:
        return asyncio.run(run(argv, limit_s=_LIMIT_S))
    except OSError:  # TimeoutError is one
        return None
