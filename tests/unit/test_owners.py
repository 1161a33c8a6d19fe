# SPDX-License-Identifier: Apache-2.0
"""Owners: one work for a key, which callers join."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator

import pytest

from criagent.base import aio, faults
from criagent.base.aio import (
    Owner,
    Owners,
    Rollback,
)
from criagent.base.errors import AgentError, TimedOutError
from tests.support.turns import passes


@pytest.fixture(autouse=True)
def counted_anew() -> Iterator[None]:
    aio.FAILURES.clear()
    yield
    aio.FAILURES.clear()
    faults.arm(None)


# Owners


async def test_callers_join_one_work_and_one_that_leaves_stops_nothing() -> None:
    owners: Owners[str, int] = Owners(limit_s=10)
    go, begun = asyncio.Event(), []

    async def work(owner: Owner[str, int]) -> int:
        begun.append(owner.key)
        await go.wait()
        return 7

    owner = owners.start("k", "fingerprint", work)
    with pytest.raises(RuntimeError, match="exists"):
        owners.start("k", "other", work)
    callers = [asyncio.create_task(owners.join(owner)) for _ in range(3)]
    await passes()
    callers[0].cancel()
    await passes()
    assert owners.get("k") is owner
    assert owners.all() == [owner]
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await callers[0]
    assert [await callers[1], await callers[2]] == [7, 7]
    assert begun == ["k"]
    assert owners.get("k") is None


async def test_the_limit_names_object_stage_setting_and_a_failed_undo() -> None:
    owners: Owners[str, None] = Owners(limit_s=0.01, noun="sandbox", setting="runtime.limit_s")

    async def refuse() -> None:
        raise AgentError("plug-in refuses")

    async def work(owner: Owner[str, None]) -> None:
        owner.stage = "network"
        async with Rollback("verb", step_budget_s=10) as undo:
            undo.push("network", refuse)
            await asyncio.Event().wait()

    with pytest.raises(TimedOutError) as caught:
        await owners.join(owners.start("pod_ns_uid_0", None, work))
    text = str(caught.value)
    for part in ('sandbox "pod_ns_uid_0"', "0.01 s", "stage: network", "raise runtime.limit_s"):
        assert part in text
    assert caught.value.__notes__ == ["undo of network failed: plug-in refuses"]
    assert owners.all() == []


async def test_a_time_out_of_the_work_itself_is_not_taken_for_the_limit() -> None:
    owners: Owners[str, None] = Owners(limit_s=60)

    async def work(owner: Owner[str, None]) -> None:
        owner.stage = "plug-in"
        raise TimeoutError("the plug-in hangs")

    with pytest.raises(TimeoutError, match="the plug-in hangs") as caught:
        await owners.join(owners.start("k", None, work))
    assert caught.value.__notes__ == ["stage: plug-in"]


async def test_an_error_of_the_kernel_gets_the_stage_as_a_note() -> None:
    owners: Owners[str, None] = Owners(limit_s=60)

    async def work(owner: Owner[str, None]) -> None:
        owner.stage = "pod files"
        raise OSError(errno.ENOSPC, "No space left on device", "/run/x")

    with pytest.raises(OSError, match="No space") as caught:
        await owners.join(owners.start("k", None, work))
    assert caught.value.__notes__ == ["stage: pod files"]


async def test_an_owner_cancelled_before_its_first_step_frees_its_name() -> None:
    owners: Owners[str, None] = Owners(limit_s=60)

    async def work(owner: Owner[str, None]) -> None:
        raise AssertionError(owner.key)

    owner = owners.start("k", None, work)
    assert owner.task is not None
    owner.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await owner.task
    await passes()
    assert owners.get("k") is None


async def test_drain_waits_then_cancels_and_awaits_the_undo() -> None:
    owners: Owners[str, None] = Owners(limit_s=60)
    undone = []

    async def undo_it() -> None:
        await passes()
        undone.append("undo")

    async def work(owner: Owner[str, None]) -> None:
        del owner
        async with Rollback("verb", step_budget_s=10) as undo:
            undo.push("row", undo_it)
            await asyncio.Event().wait()

    await owners.drain(0)
    owners.start("k", None, work)
    await passes()
    await owners.drain(0.01)
    assert undone == ["undo"]
    assert owners.all() == []


async def test_a_call_joins_the_work_on_its_key_or_starts_it() -> None:
    owners: Owners[tuple[str, int], int] = Owners(limit_s=60)
    go, begun = asyncio.Event(), []

    async def work(owner: Owner[tuple[str, int], int]) -> int:
        begun.append(owner.key)
        await go.wait()
        return len(begun)

    calls = [asyncio.create_task(owners.run(key, work)) for key in [("a", 1), ("a", 1), ("a", 2)]]
    await passes()
    assert begun == [("a", 1), ("a", 2)]
    go.set()
    assert await asyncio.gather(*calls) == [2, 2, 2]
    assert owners.all() == []


async def test_cancelling_chosen_keys_awaits_their_undo_and_leaves_others() -> None:
    owners: Owners[tuple[str, int], None] = Owners(limit_s=60)
    undone = []

    async def work(owner: Owner[tuple[str, int], None]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await passes()
            undone.append(owner.key)

    for key in [("a", 1), ("b", 1), ("a", 2)]:
        owners.start(key, None, work)
    await passes()
    await owners.cancel(lambda key: key[0] == "c")
    assert undone == []
    await owners.cancel(lambda key: key[0] == "a")
    assert undone == [("a", 1), ("a", 2)]
    assert [owner.key for owner in owners.all()] == [("b", 1)]
    await owners.drain(0)


async def test_texts_and_stages_show_a_key_as_its_owners_say() -> None:
    owners: Owners[int, None] = Owners(
        limit_s=0.01, noun="container", show=lambda key: f"start:{key}"
    )
    heard: list[str] = []

    async def work(_: Owner[int, None]) -> None:
        await asyncio.Event().wait()

    async def call() -> None:
        def heard_of(name: str) -> aio.StageObserver:
            heard.append(name)
            return lambda _: None

        aio.STAGES.set(heard_of)
        await owners.run(7, work)

    with pytest.raises(TimedOutError, match='container "start:7" was not ready'):
        await asyncio.create_task(call())
    assert heard == ["start:7"]


async def test_stages_are_heard_by_who_observes_the_call_that_starts_the_owner() -> None:
    owners: Owners[str, None] = Owners(limit_s=60)
    heard: list[tuple[str, str]] = []

    async def work(owner: Owner[str, None]) -> None:
        owner.stage = "state"
        owner.stage = "network"

    async def call() -> None:
        aio.STAGES.set(lambda key: lambda stage: heard.append((key, stage)))
        await owners.join(owners.start("k", None, work))

    await asyncio.create_task(call())
    await owners.join(owners.start("unobserved", None, work))
    assert heard == [("k", "state"), ("k", "network"), ("k", "")]
