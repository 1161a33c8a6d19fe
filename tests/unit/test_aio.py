# SPDX-License-Identifier: Apache-2.0
"""The asyncio tools: work awaited to its end, undo that fails or is cancelled, owners, limits."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from criagent.base import aio, faults
from criagent.base.aio import (
    KeyedLocks,
    Rollback,
    detached,
    finish,
    finished,
    run_in,
    supervised,
)
from criagent.base.errors import AgentError, ExhaustedError
from tests.support.turns import passes

STEPS = ("row", "namespaces", "network", "holder")


@pytest.fixture(autouse=True)
def counted_anew() -> Iterator[None]:
    aio.FAILURES.clear()
    yield
    aio.FAILURES.clear()
    faults.arm(None)


# finish and run_in


async def test_finish_gives_result_and_failure_of_its_work() -> None:
    async def result() -> int:
        return 7

    async def failure() -> None:
        raise ExhaustedError("full")

    assert await finish(result()) == 7
    with pytest.raises(ExhaustedError, match="full"):
        await finish(failure())


@pytest.mark.parametrize("cancels", [1, 3])
async def test_finish_ends_its_work_before_it_raises_the_cancellation(cancels: int) -> None:
    go, done = asyncio.Event(), []

    async def work() -> None:
        await go.wait()
        done.append("end")

    task = asyncio.create_task(finish(work()))
    for _ in range(cancels):
        await passes()
        task.cancel()
    await passes()
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["end"]


async def test_a_failure_during_a_held_back_cancellation_is_a_note_of_it() -> None:
    go = asyncio.Event()

    async def work() -> None:
        await go.wait()
        raise ExhaustedError("full")

    async def caller() -> list[str]:
        try:
            await finish(work())
        except asyncio.CancelledError as cancelled:
            return cancelled.__notes__
        return []

    task = asyncio.create_task(caller())
    await passes()
    task.cancel()
    go.set()
    assert await task == ["while finishing: ExhaustedError('full')"]


async def test_work_that_is_cancelled_from_inside_is_a_cancellation_of_finish() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await finish(work())


async def test_run_in_awaits_the_thread_also_when_cancelled() -> None:
    entered, leave, seen = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def call() -> None:
        loop.call_soon_threadsafe(entered.set)
        leave.wait(10)
        seen.append(structlog.contextvars.get_contextvars()["pod"])

    async def caller() -> None:
        with structlog.contextvars.bound_contextvars(pod="n/p"):
            await run_in(executor, call)

    with ThreadPoolExecutor(1) as executor:
        task = asyncio.create_task(caller())
        await entered.wait()
        task.cancel()
        await passes()
        assert not task.done()
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert seen == ["n/p"]


async def test_finished_awaits_work_outside_of_the_loop_to_its_end() -> None:
    loop = asyncio.get_running_loop()
    work: asyncio.Future[int] = loop.create_future()
    task = asyncio.create_task(finished(work))
    for _ in range(2):
        await passes()
        task.cancel()
    await passes()
    assert not task.done()
    assert not work.cancelled()
    work.set_exception(OSError("the disk"))
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert "the disk" in "".join(caught.value.__notes__)


async def test_finished_returns_and_raises_what_the_work_does() -> None:
    loop = asyncio.get_running_loop()
    good, bad, given_up = (loop.create_future() for _ in range(3))
    loop.call_soon(good.set_result, 7)
    loop.call_soon(bad.set_exception, OSError("the disk"))
    loop.call_soon(given_up.cancel)
    assert await finished(good) == 7
    assert await finished(good) == 7
    with pytest.raises(OSError, match="the disk"):
        await finished(bad)
    with pytest.raises(asyncio.CancelledError):
        await finished(given_up)


# Rollback


class Verb:
    """Steps that each push an undo; what was undone, in order."""

    def __init__(self, *, failing: str = "", how: Callable[[], BaseException] = OSError) -> None:
        self.undone: list[str] = []
        self.undo = Rollback("verb", step_budget_s=10)
        self._failing = failing
        self._how = how

    async def run(self, ends_with: BaseException | None) -> None:
        async with self.undo:
            for step in STEPS:
                self.undo.push(step, lambda step=step: self._undo(step))
            if ends_with is None:
                self.undo.commit()
            else:
                raise ends_with

    async def _undo(self, step: str) -> None:
        if step == self._failing:
            raise self._how()
        self.undone.append(step)


async def test_undo_runs_in_reverse_and_not_at_all_after_a_commit() -> None:
    verb = Verb()
    with pytest.raises(ExhaustedError):
        await verb.run(ExhaustedError("full"))
    assert verb.undone == list(reversed(STEPS))
    assert verb.undo.clean
    kept = Verb()
    await kept.run(None)
    assert (kept.undone, kept.undo.clean) == ([], True)


FAILURES: list[tuple[Callable[[], BaseException], str]] = [
    (lambda: OSError(errno.EBUSY, "umount2: Device or resource busy", "/r"), "busy: /r"),
    (lambda: AgentError("plug-in refuses"), "plug-in refuses"),
    (lambda: KeyError("secret"), "KeyError"),
    (lambda: asyncio.CancelledError("secret"), "CancelledError"),
]


@pytest.mark.parametrize(("how", "reason"), FAILURES)
@pytest.mark.parametrize("ending", [ExhaustedError("full"), asyncio.CancelledError()])
@pytest.mark.parametrize("step", STEPS)
async def test_unwinding_stops_at_the_undo_that_fails_and_says_so(
    step: str, ending: BaseException, how: Callable[[], BaseException], reason: str
) -> None:
    verb = Verb(failing=step, how=how)
    with capture_logs() as lines, pytest.raises(type(ending)) as caught:
        await verb.run(type(ending)(*ending.args))
    assert verb.undone == list(reversed(STEPS[STEPS.index(step) + 1 :]))
    assert not verb.undo.clean
    (note,) = caught.value.__notes__
    assert note.startswith(f"undo of {step} failed: ")
    assert note.endswith(reason)
    (line,) = lines
    assert (line["event"], line["step"]) == ("undo_failed", step)
    assert (line["log_level"], line["exc_info"]) == ("error", True)
    assert aio.FAILURES["undo"] == 1


async def test_a_caller_that_is_cancelled_again_waits_for_the_whole_undo() -> None:
    go, undone = asyncio.Event(), []

    async def slow() -> None:
        await go.wait()
        undone.append("slow")

    async def work() -> None:
        async with Rollback("verb", step_budget_s=10) as undo:
            undo.push("slow", slow)
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    for _ in range(3):
        await passes()
        task.cancel()
    await passes()
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert undone == ["slow"]


async def test_an_undo_that_hangs_is_given_up_after_its_budget() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    undo = Rollback("verb", step_budget_s=0.01)

    async def verb() -> None:
        async with undo:
            undo.push("row", hang)
            raise ExhaustedError("full")

    with pytest.raises(ExhaustedError) as caught:
        await verb()
    assert not undo.clean
    assert caught.value.__notes__ == ["undo of row failed: it took longer than 0.01 s"]


@pytest.mark.parametrize("what", ["EIO", "cancel"])
async def test_a_fault_point_makes_an_undo_fail_once(what: str) -> None:
    faults.arm(None, [f"verb:undo-network={what}"])
    first, second = Verb(), Verb()
    for verb in (first, second):
        with pytest.raises(ExhaustedError):
            await verb.run(ExhaustedError("full"))
    assert (first.undone, first.undo.clean) == (["holder"], False)
    assert (second.undone, second.undo.clean) == (list(reversed(STEPS)), True)


@pytest.mark.parametrize("entry", ["verb:row=ENOSUCH", "verb:row=", "verb:row"])
def test_a_fault_is_named_by_errno_or_refused(entry: str) -> None:
    if entry.endswith("ENOSUCH"):
        with pytest.raises(ValueError, match="ENOSUCH"):
            faults.arm(None, [entry])
        return
    faults.arm(None, [entry])
    with pytest.raises(OSError, match="verb:row") as caught:
        faults.reach("verb:row")
    assert caught.value.errno == errno.EIO
    faults.reach("verb:row")


# Tasks that nobody awaits


async def test_the_failure_of_a_background_task_is_logged_and_counted() -> None:
    async def fail() -> None:
        raise KeyError("bug")

    with capture_logs() as lines:
        task = supervised(fail(), name="sweeper")
        await asyncio.wait({task})
        await passes()
    (line,) = lines
    assert (line["event"], line["task"], line["log_level"]) == (
        "background_failed",
        "sweeper",
        "error",
    )
    assert isinstance(line["exc_info"], KeyError)
    assert aio.FAILURES["background"] == 1


async def test_a_background_task_that_is_cancelled_or_ends_is_no_event() -> None:
    with capture_logs() as lines:
        ended = supervised(asyncio.sleep(0), name="ended")
        endless = supervised(asyncio.sleep(3600), name="endless")
        await ended
        await aio.settle(endless)
    assert lines == []
    assert endless.cancelled()


async def test_a_detached_task_names_its_own_facts_and_not_the_call_that_starts_it() -> None:
    seen: dict[str, Any] = {}

    async def work() -> None:
        seen.update(structlog.contextvars.get_contextvars())

    with structlog.contextvars.bound_contextvars(rpc="CreateContainer"):
        await detached(work(), name="exit", container_id="c1")
    assert seen == {"container_id": "c1"}


async def test_settle_awaits_a_task_that_takes_long_to_end_even_when_cancelled() -> None:
    go, ended = asyncio.Event(), []

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await finish(last())

    async def last() -> None:
        await go.wait()
        ended.append("end")

    victim = asyncio.create_task(stubborn())
    await passes()
    settling = asyncio.create_task(aio.settle(victim))
    await passes()
    settling.cancel()
    await passes()
    assert not settling.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await settling
    assert ended == ["end"]


async def test_locks_are_held_by_key_and_forgotten_with_the_last_user() -> None:
    locks, order = KeyedLocks(), []

    async def user(name: str, key: str) -> None:
        async with locks.hold(key):
            order.append(f"{name} in")
            await passes()
            order.append(f"{name} out")

    await asyncio.gather(user("a", "x"), user("b", "x"), user("c", "y"))
    assert order.index("a out") < order.index("b in")
    assert order.index("c in") < order.index("a out")
    assert locks._locks == {}


async def test_both_are_run_to_their_ends_before_the_failure_is_raised() -> None:
    go_on, ended = asyncio.Event(), []

    async def fails() -> int:
        asyncio.get_running_loop().call_soon(go_on.set)
        raise OSError("full")

    async def goes_on() -> str:
        await go_on.wait()
        ended.append("other")
        return "done"

    with pytest.raises(OSError, match="full"):
        await aio.both(fails(), goes_on())
    assert ended == ["other"]
    assert await aio.both(goes_on(), goes_on()) == ("done", "done")
