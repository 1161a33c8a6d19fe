# SPDX-License-Identifier: Apache-2.0
"""Tasks that end with a block, and background work of which one at a time runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from criagent.base import aio
from criagent.base.aio import Background, alongside
from criagent.base.errors import ExhaustedError


@pytest.fixture(autouse=True)
def counted_anew() -> Iterator[None]:
    aio.FAILURES.clear()
    yield
    aio.FAILURES.clear()


class Work:
    """Ends when `go` is set, and takes `undo` to end when cancelled."""

    def __init__(self) -> None:
        self.go, self.undo = asyncio.Event(), asyncio.Event()
        self.begun = self.undone = 0
        self.failure: Exception | None = None

    async def run(self) -> None:
        self.begun += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            await self.undo.wait()
            self.undone += 1
            raise
        if self.failure is not None:
            raise self.failure


@pytest.fixture
async def work() -> Work:
    return Work()


async def passes() -> None:
    """Let every task that is ready run a while."""
    for _ in range(10):
        await asyncio.sleep(0)


# alongside


async def test_work_alongside_a_block_has_ended_when_the_block_has(work: Work) -> None:
    async def block() -> None:
        async with alongside(work.run()):
            await passes()

    running = asyncio.create_task(block())
    await passes()
    assert (work.begun, running.done()) == (1, False)
    running.cancel()  # is held back until the work has ended
    await passes()
    assert not running.done()
    work.undo.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert work.undone == 1


async def test_the_block_takes_the_result_or_the_failure_of_the_work(work: Work) -> None:
    work.go.set()
    async with alongside(asyncio.sleep(0, "done")) as ready:
        assert await ready == "done"
    work.failure = ExhaustedError("full")
    with pytest.raises(ExhaustedError):
        async with alongside(work.run()) as failing:
            await failing


async def test_a_failure_that_the_block_does_not_take_is_dropped(work: Work) -> None:
    work.failure = ExhaustedError("full")
    work.go.set()
    async with alongside(work.run()):
        await passes()  # a failure that nobody retrieves is a warning, and warnings are errors
    assert aio.FAILURES["background"] == 0


async def test_the_error_of_the_block_leaves_it_and_not_that_of_the_work(work: Work) -> None:
    work.failure = ExhaustedError("full")
    work.undo.set()
    with pytest.raises(KeyError):
        async with alongside(work.run()):
            raise KeyError("block")


# Background


async def test_background_work_runs_once_at_a_time_and_again_when_wanted(work: Work) -> None:
    background = Background("count")
    background.start(work.run)
    background.start(work.run)
    await passes()
    assert (work.begun, background.running) == (1, True)
    work.go.set()
    await background.wait()
    assert not background.running
    background.start(work.run)
    await background.wait()
    assert work.begun == 2


async def test_failed_background_work_is_logged_counted_and_can_start_again(work: Work) -> None:
    background = Background("count")
    work.failure = ExhaustedError("full")
    work.go.set()
    with capture_logs() as logs:
        background.start(work.run)
        await background.wait()
        await passes()
    assert [(line["event"], line["task"]) for line in logs] == [("background_failed", "count")]
    assert aio.FAILURES["background"] == 1
    work.failure = None
    background.start(work.run)
    await background.wait()
    assert work.begun == 2


async def test_stopped_background_work_has_ended(work: Work) -> None:
    background = Background("count")
    await background.stop()  # nothing to stop
    background.start(work.run)
    await passes()
    stopping = asyncio.create_task(background.stop())
    await passes()
    assert not stopping.done()
    work.undo.set()
    await stopping
    assert (work.undone, background.running) == (1, False)
    assert aio.FAILURES["background"] == 0
