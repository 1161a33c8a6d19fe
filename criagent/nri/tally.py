# SPDX-License-Identifier: Apache-2.0
"""Numbers of calls of plugins, for the metrics."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict


@dataclasses.dataclass(slots=True)
class Tally:
    """Calls since the start, by plugin; failures are calls without a valid answer."""

    calls: Counter[str] = dataclasses.field(default_factory=Counter)
    refusals: Counter[str] = dataclasses.field(default_factory=Counter)
    failures: Counter[str] = dataclasses.field(default_factory=Counter)
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
