# SPDX-License-Identifier: Apache-2.0
"""Is one series of figures larger than another? Ratios of runs in turn, with a confidence interval.

Pure. The two programs run in turn, so a machine that is slow for a while slows both: the ratio of
each round says more than the figures. Estimate and interval are those of Hodges and Lehmann
(Wilcoxon's signed-rank test): the median of the means of all pairs. They assume nothing about the
shape of the noise, and one disturbed round moves them little.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

LEAST_ROUNDS = 8  # with fewer no interval has this confidence
_CONFIDENCE = 0.99  # of a table of twenty figures and more, few may be wrong by chance


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How many times as large the new figures are, and the interval of 99 % confidence."""

    ratio: float
    low: float
    high: float

    def worse(self, threshold: float, *, least: bool) -> bool:
        """Whether all of the interval is beyond `threshold`, a share of the old figure.

        With `least` a larger figure is the better one.
        """
        if least:
            return self.high < 1 / (1 + threshold)
        return self.low > 1 + threshold

    def better(self, *, least: bool) -> bool:
        """Whether all of the interval is on the good side of 1."""
        return self.low > 1 if least else self.high < 1


def change(old: Sequence[float], new: Sequence[float]) -> Change:
    """The change from `old` to `new`, figures of the same rounds.

    Raises ValueError for fewer than LEAST_ROUNDS rounds, and for a figure that is not positive.
    """
    rounds = len(old)
    if rounds < LEAST_ROUNDS or rounds != len(new):
        raise ValueError(
            f"{rounds} and {len(new)} figures; at least {LEAST_ROUNDS} pairs are needed"
        )
    if min(*old, *new) <= 0:
        raise ValueError("a figure is not positive")
    logs = [math.log(after / before) for before, after in zip(old, new, strict=True)]
    means = sorted((logs[i] + logs[j]) / 2 for i in range(rounds) for j in range(i + 1))
    outside = _outside(rounds)
    middle = len(means) // 2
    estimate = (means[middle] + means[-1 - middle]) / 2
    return Change(
        ratio=math.exp(estimate),
        low=math.exp(means[outside]),
        high=math.exp(means[-1 - outside]),
    )


def _outside(rounds: int) -> int:
    """How many of the sorted means lie outside of the interval on each side: the largest rank sum
    that is improbable enough.
    """
    ways = [1]  # subsets of the ranks 1…rounds by their sum
    for rank in range(1, rounds + 1):
        grown = ways + [0] * rank
        for total, count in enumerate(ways):
            grown[total + rank] += count
        ways = grown
    allowed = (1 - _CONFIDENCE) / 2 * 2**rounds
    seen = count = 0
    while seen + ways[count] <= allowed:
        seen += ways[count]
        count += 1
    return count - 1
