# SPDX-License-Identifier: Apache-2.0
"""The judge of `make bench-compare`: what is noise, and what has become worse."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.bench.compare import report
from tests.bench.judge import change


def noisy(seed: int, factor: float = 1.0) -> tuple[list[float], list[float]]:
    """Figures of eight rounds on a machine that is up to twice as slow in some rounds."""
    draw = random.Random(seed)
    machine = [20 * draw.uniform(1, 2) for _ in range(8)]
    old = [one * draw.uniform(0.97, 1.03) for one in machine]
    return old, [one * factor * draw.uniform(0.97, 1.03) for one in machine]


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(1000):
        moved = change(*noisy(seed, 1.1))
        inside += moved.low <= 1.1 <= moved.high
    assert inside >= 977  # 99 %, less four standard deviations


def test_a_slower_side_is_found_although_the_machine_changes() -> None:
    moved = change(*noisy(1, 1.2))
    assert moved.ratio == pytest.approx(1.2, rel=0.05)
    assert moved.worse(0.05, least=False)
    assert moved.better(least=True)
    assert not moved.worse(0.05, least=True)
    assert not moved.better(least=False)


def test_equal_sides_are_neither_worse_nor_better() -> None:
    moved = change(*noisy(2))
    assert not moved.worse(0.05, least=False)
    assert not moved.worse(0.05, least=True)


def test_one_disturbed_round_changes_no_verdict() -> None:
    old, new = noisy(3)
    new[4] *= 10
    moved = change(old, new)
    assert not moved.worse(0.05, least=False)
    assert moved.ratio == pytest.approx(1, rel=0.05)


def test_the_interval_is_that_of_the_signed_rank_test() -> None:
    """With eight rounds it spans all means of pairs; with ten, three on each side are outside."""
    old = [1.0] * 10
    new = [1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 1.08, 1.09, 1.1]
    eight = change(old[:8], new[:8])
    assert [eight.low, eight.high] == pytest.approx([1.01, 1.08])
    pairs = itertools.combinations_with_replacement(new, 2)
    means = sorted((one * other) ** 0.5 for one, other in pairs)
    ten = change(old, new)
    assert [ten.low, ten.high] == pytest.approx([means[3], means[-4]])


@pytest.mark.parametrize(("old", "new"), [([1.0] * 7, [1.0] * 7), ([1.0] * 8, [0.0] * 8)])
def test_figures_that_say_nothing_are_refused(old: list[float], new: list[float]) -> None:
    with pytest.raises(ValueError, match=r"figures|positive"):
        change(old, new)


def test_the_table_fails_for_a_figure_that_is_worse(capsys: pytest.CaptureFixture[str]) -> None:
    def runs(time_ms: float, rate: float) -> list[list[dict[str, object]]]:
        rows: list[dict[str, object]] = [
            {"name": "pod up", "value": time_ms, "least": False},
            {"name": "pods", "value": rate, "least": True},
        ]
        return [rows] * 8

    assert report(runs(20, 50), runs(20, 50), 0.05) == 0
    assert report(runs(20, 50), runs(19, 60), 0.05) == 0
    capsys.readouterr()
    assert report(runs(20, 50), runs(22, 60), 0.05) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("pod")] == ["WORSE", "better"]
    assert report(runs(20, 50), runs(20, 40), 0.05) == 1
