# SPDX-License-Identifier: Apache-2.0
"""Work that callers share: its result, its failure, and who may stop it."""

from __future__ import annotations

import asyncio

import pytest

from criagent.base.errors import ExhaustedError
from criagent.base.single_flight import SingleFlight


async def passes() -> None:
    """Let every task that is ready run a while."""
    for _ in range(10):
        await asyncio.sleep(0)


class Work:
    """Counts its runs; ends when `go` is set, and takes `undo` to end when cancelled."""

    def __init__(self) -> None:
        self.runs = 0
        self.cancelled = 0
        self.go = asyncio.Event()
        self.undo = asyncio.Event()
        self.failure: Exception | None = None

    async def run(self) -> int:
        self.runs += 1
        number = self.runs
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            await self.undo.wait()
            self.cancelled += 1
            raise
        if self.failure is not None:
            raise self.failure
        return number


@pytest.fixture
async def work() -> Work:
    return Work()


def joined(flights: SingleFlight[str, int], work: Work, key: str = "a") -> asyncio.Task[int]:
    return asyncio.create_task(flights.join(key, work.run, name=f"work:{key}"))


async def test_callers_of_one_key_share_one_run_and_its_result(work: Work) -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    callers = [joined(flights, work) for _ in range(3)]
    await passes()
    assert (work.runs, len(flights)) == (1, 1)
    work.go.set()
    assert await asyncio.gather(*callers) == [1, 1, 1]
    assert len(flights) == 0


async def test_keys_do_not_share(work: Work) -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    callers = [joined(flights, work, key) for key in ("a", "b")]
    work.go.set()
    assert sorted(await asyncio.gather(*callers)) == [1, 2]


async def test_a_failure_is_told_to_all_callers_and_the_key_is_free_afterwards(work: Work) -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work.failure = ExhaustedError("full")
    callers = [joined(flights, work) for _ in range(3)]
    work.go.set()
    found = await asyncio.gather(*callers, return_exceptions=True)
    assert found == [work.failure] * 3
    work.failure = None
    assert await joined(flights, work) == 2


@pytest.mark.parametrize("leaving", [0, 1])
async def test_a_caller_that_leaves_others_behind_stops_nothing(work: Work, leaving: int) -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    callers = [joined(flights, work) for _ in range(2)]
    await passes()
    callers[leaving].cancel()
    await passes()
    assert callers[leaving].cancelled()
    work.go.set()
    assert await callers[1 - leaving] == 1
    assert (work.runs, work.cancelled) == (1, 0)


async def test_the_last_caller_that_leaves_stops_the_work_and_frees_its_key(work: Work) -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    callers = [joined(flights, work) for _ in range(2)]
    await passes()
    for caller in callers:
        caller.cancel()
    await passes()
    assert all(caller.cancelled() for caller in callers)  # they do not wait for the undo
    assert len(flights) == 1  # its undo is under way

    late = joined(flights, work)
    await passes()
    assert (work.runs, len(flights)) == (2, 2)
    work.undo.set()
    await passes()
    assert (work.cancelled, len(flights)) == (1, 1)
    work.go.set()
    assert await late == 2


async def test_each_ended_run_is_reported_once_with_its_outcome(work: Work) -> None:
    outcomes = []

    def ended(task: asyncio.Task[int]) -> None:
        outcomes.append("cancelled" if task.cancelled() else task.exception() or task.result())

    flights: SingleFlight[str, int] = SingleFlight(ended)
    work.undo.set()
    first = joined(flights, work)
    await passes()
    first.cancel()
    await passes()
    work.go.set()
    await asyncio.gather(*(joined(flights, work) for _ in range(2)))
    work.failure = ExhaustedError("full")
    await asyncio.gather(joined(flights, work), return_exceptions=True)
    assert outcomes == ["cancelled", 2, work.failure]


async def test_close_stops_all_work_and_awaits_its_undo(work: Work) -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    callers = [joined(flights, work, key) for key in ("a", "b")]
    await passes()
    closing = asyncio.create_task(flights.close())
    await passes()
    assert not closing.done()
    work.undo.set()
    await closing
    assert (work.cancelled, len(flights)) == (2, 0)
    assert [caller.cancelled() for caller in callers] == [True, True]
