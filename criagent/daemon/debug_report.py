# SPDX-License-Identifier: Apache-2.0
"""What `criagent debug` shows: tasks, threads, owners, locks, queues and memory of the daemon.

Callable from any thread, also while the event loop is held up: SIGUSR1 logs it.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from criagent.base.aio import FAILURES, KEYED_LOCKS, Owners
from criagent.daemon.wiring.shared import Shared
from criagent.process import stacks

_TYPES = 30  # kinds of objects, the most frequent


class DebugReport:
    """Reads the daemon's own state."""

    def __init__(self, shared: Shared, loop: asyncio.AbstractEventLoop) -> None:
        self._shared = shared
        self._loop = loop
        self._calls: Callable[[], Mapping[str, float]] = dict
        self._oldest_s: Callable[[], float] = float

    def calls(
        self, in_flight: Callable[[], Mapping[str, float]], oldest_s: Callable[[], float]
    ) -> None:
        """What counts the calls in progress, once there is a server."""
        self._calls, self._oldest_s = in_flight, oldest_s

    def document(self, *, objects: bool) -> dict[str, Any]:
        """Everything. Counting `objects` by their type holds up the daemon for some 50 ms."""
        return {
            **self.state(),
            "threads": stacks.threads(),
            "tasks": [{"name": name, "stack": stack} for name, stack in stacks.tasks(self._loop)],
            **({"objects": _objects()} if objects else {}),
        }

    def state(self) -> dict[str, Any]:
        """Everything but stacks."""
        return {
            "calls": {"in_flight": dict(self._calls()), "oldest_s": round(self._oldest_s(), 3)},
            "owners": [
                {"kind": kind, "key": str(owner.name), "stage": owner.stage}
                for kind, owners in self._owners().items()
                for owner in owners.all()
            ],
            "locks": [
                {"kind": locks.name, "key": key, "users": users}
                for locks in list(KEYED_LOCKS)
                for key, users in locks.in_use().items()
            ],
            "queues": self._queues(),
            "memory": _memory(),
            "failures": dict(FAILURES),
        }

    def _owners(self) -> dict[str, Owners[Any, Any]]:
        work = self._shared.work
        return {
            "create sandbox": work.sandbox_creations,
            "create container": work.container_creations,
            "start": work.starts,
            "stop or remove": work.endings,
            "log rotation": work.reopenings,
            "checkpoint": work.checkpoints,
        }

    def _queues(self) -> dict[str, int]:
        executors = self._shared.executors
        pools: dict[str, ThreadPoolExecutor] = {
            "net": executors.net,
            "fs": executors.fs,
            "counting": executors.counting,
            "checkpoints": executors.checkpoints,
        }
        # executors have no public length of their queue
        waiting = {name: pool._work_queue.qsize() for name, pool in pools.items()}  # noqa: SLF001
        return {**waiting, "db": self._shared.stores.db.waiting}


def _memory() -> dict[str, int]:
    """Of /proc/self/status in bytes, and the number of blocks that Python's allocator gave out."""
    keys = {"VmRSS": "rss_bytes", "VmHWM": "most_rss_bytes", "VmSwap": "swap_bytes"}
    found = {"python_blocks": sys.getallocatedblocks()}
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in keys:
            found[keys[key]] = int(value.split()[0]) * 1024
    return found


def _objects() -> dict[str, int]:
    """Counts by type, with those that `daemon.garbage` keeps out of collections."""
    frozen = gc.get_freeze_count()
    if frozen:  # get_objects knows nothing of them
        gc.unfreeze()
    counts = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
    if frozen:
        gc.collect()
        gc.freeze()
    return dict(counts.most_common(_TYPES))
