# SPDX-License-Identifier: Apache-2.0
"""Waiting for a fact without guessing a time: look until it holds, fail when it does not."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from pathlib import Path

LIMIT_S = 20


def until(holds: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    """Look every 10 ms until `holds()`; AssertionError naming `what` after `limit_s`."""
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, f"{what} did not happen within {limit_s} s"
        select.select([], [], [], 0.01)


def content(path: Path) -> bytes:
    """A file of /proc; b"" when its process has just ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
