# SPDX-License-Identifier: Apache-2.0
"""Numbers of snapshots: those of the n-th additional store begin at n << 40."""

from __future__ import annotations

_BITS = 40


def in_store(index: int, number: int) -> int:
    """The number, in this agent, of the layer `number` of the store `index`, which begins at 1."""
    return index << _BITS | number


def split(number: int) -> tuple[int, int]:
    """The store, 0 = this agent's own root directory, and the number within it."""
    return number >> _BITS, number & ((1 << _BITS) - 1)
