# SPDX-License-Identifier: Apache-2.0
"""Whether recovery is done."""

from __future__ import annotations


class Readiness:
    """Until it is, calls other than Version are refused."""

    def __init__(self) -> None:
        self._ready = False
        self._took_s = 0.0

    def reached(self, took_s: float) -> None:
        """Recovery is done, and took so long."""
        self._ready, self._took_s = True, took_s

    def ready(self) -> bool:
        """Whether it is."""
        return self._ready

    def recovery_s(self) -> float:
        """How long it took; 0 before its end."""
        return self._took_s
