# SPDX-License-Identifier: Apache-2.0
"""A progress bar on standard error, when that is a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType

_EVERY_S = 0.1
_WIDTH = 30


class Bar:
    """Counts bytes; `total` 0 = unknown."""

    def __init__(self, verb: str, total: int) -> None:
        self._verb = verb
        self._total = total
        self._done = 0
        self._shown = 0.0
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._terminal:
            self._show()
            sys.stderr.write("\n")

    def moved(self, count: int) -> None:
        """Add `count` bytes."""
        self._done += count
        now = time.monotonic()
        if self._terminal and now - self._shown > _EVERY_S:
            self._shown = now
            self._show()

    def at(self, done: int, total: int) -> None:
        """Say how far it is, as another process counts it; a 0 is not yet known, or no longer."""
        self._done = max(self._done, done)
        self._total = max(self._total, total)
        if self._terminal:
            self._show()

    def _show(self) -> None:
        text = f"\r{self._verb} {size_text(self._done)}"
        if self._total:
            full = min(self._done / self._total, 1.0)
            text += f" of {size_text(self._total)}"
            room = shutil.get_terminal_size().columns - len(text) - len("  [] 100%")
            width = min(room, _WIDTH)
            if width > 0:
                text += f" [{('=' * int(full * width)).ljust(width)}]"
            text += f" {full:.0%}"
        sys.stderr.write(text + "\033[K")  # cover the rest of a longer line
        sys.stderr.flush()


def size_text(count: int) -> str:
    """Bytes in decimal units, as crictl shows them."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}TB"
