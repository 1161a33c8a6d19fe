# SPDX-License-Identifier: Apache-2.0
"""What ExecSync keeps of two streams, in one call and in many at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criagent.process.child import Pipes
from criagent.runtime.exec.output import OWN_SHARE, ExecOutput, OutputBudget

_WRITES = st.lists(st.tuples(st.booleans(), st.integers(1, 9000)), max_size=12)
LIMIT = 20_000


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def output(stack: ExitStack, limit: int, budget: OutputBudget) -> tuple[ExecOutput, Pipes]:
    pipes = stack.enter_context(Pipes())
    made = ExecOutput(limit, budget, pipes)
    stack.callback(made.close)
    return made, pipes


async def written(
    made: ExecOutput, pipes: Pipes, writes: list[tuple[bool, int]]
) -> tuple[bytes, bytes]:
    """What is kept of those writes, of which True is one to the errors, in their order."""
    ends = pipes.stdout, pipes.stderr
    for to_errors, count in writes:
        text = bytes(at % 251 for at in range(count))
        os.write(ends[to_errors], text)
        await made.ended(0)
    pipes.close_child_ends()
    await made.ended(5)
    return made.taken()


@given(_WRITES)
async def test_what_fits_is_kept_and_neither_stream_starves(writes: list[tuple[bool, int]]) -> None:
    whole = [
        b"".join(bytes(at % 251 for at in range(n)) for err, n in writes if err is to_errors)
        for to_errors in (False, True)
    ]
    with ExitStack() as stack:
        kept = await written(*output(stack, LIMIT, OutputBudget(1 << 30)), writes)
    for mine, all_of_it in zip(kept, whole, strict=True):
        assert all_of_it.startswith(mine)
        assert len(mine) >= min(len(all_of_it), LIMIT // 2)
    assert sum(map(len, kept)) == min(sum(map(len, whole)), LIMIT)


async def test_calls_share_one_budget_beyond_what_each_has_for_itself(stack: ExitStack) -> None:
    budget = OutputBudget(50_000)
    outputs = [output(stack, 1 << 20, budget) for _ in range(2)]
    big = [(False, 30_000)] * 5
    kept = [sum(map(len, await written(*made, big))) for made in outputs]
    first, second = (made for made, _ in outputs)
    assert kept == [OWN_SHARE + 50_000, OWN_SHARE]
    assert (first.dropped, second.dropped) == (150_000 - kept[0], 150_000 - kept[1])
    first.close()
    assert sum(map(len, await written(*output(stack, 1 << 20, budget), big))) == kept[0]


async def test_a_stream_that_lost_bytes_gets_no_later_ones(stack: ExitStack) -> None:
    budget = OutputBudget(10_000)
    hog, hog_pipes = output(stack, 1 << 20, budget)
    made, pipes = output(stack, 1 << 20, budget)
    await written(hog, hog_pipes, [(False, 60_000), (False, 60_000)])
    for _ in range(2):
        os.write(pipes.stdout, b"a" * 60_000)
        await made.ended(0)
    hog.close()
    os.write(pipes.stdout, b"b")
    pipes.close_child_ends()
    await made.ended(5)
    assert made.taken()[0] == b"a" * OWN_SHARE
