# SPDX-License-Identifier: Apache-2.0
"""What `criagent debug` counts of the daemon: held locks, and work that waits for a thread."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from criagent.base.aio import KeyedLocks
from criagent.config.sections import Config
from criagent.daemon.debug_report import DebugReport
from criagent.daemon.wiring.shared import Executors, Shared, Stores


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Shared]:
    executors = Executors.start()
    stores = Stores.open(tmp_path / "state.db")
    yield Shared.of(Config(), stores, executors)
    stores.db.close()
    executors.shutdown()


async def test_a_lock_shows_its_key_with_holder_and_waiters(shared: Shared) -> None:
    report = DebugReport(shared, asyncio.get_running_loop())
    locks = KeyedLocks("example")

    def users() -> list[dict[str, object]]:
        return [one for one in report.state()["locks"] if one["kind"] == "example"]

    async def take() -> None:
        async with locks.hold("pod-1"):
            pass

    assert users() == []
    async with locks.hold("pod-1"):
        waiting = asyncio.ensure_future(take())
        await asyncio.sleep(0)
        assert users() == [{"kind": "example", "key": "pod-1", "users": 2}]
    await waiting
    assert users() == []


async def test_objects_are_counted_that_collections_leave_out(shared: Shared) -> None:
    report = DebugReport(shared, asyncio.get_running_loop())
    gc.collect()
    gc.freeze()
    try:
        assert sum(report.document(objects=True)["objects"].values()) > 10_000
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("name", ["net", "fs", "counting", "checkpoints"])
async def test_a_queue_counts_what_waits_and_not_what_runs(shared: Shared, name: str) -> None:
    report = DebugReport(shared, asyncio.get_running_loop())
    pool = getattr(shared.executors, name)
    go_on = threading.Event()
    begun = threading.Semaphore(0)

    def work() -> None:
        begun.release()
        go_on.wait()

    threads = pool._max_workers
    running = [pool.submit(work) for _ in range(threads)]
    try:
        for _ in running:
            assert begun.acquire(timeout=30)
        assert report.state()["queues"][name] == 0
        waiting = [pool.submit(work) for _ in range(3)]
        assert report.state()["queues"][name] == 3
    finally:
        go_on.set()
    for one in (*running, *waiting):
        one.result(timeout=30)
    assert report.state()["queues"][name] == 0
