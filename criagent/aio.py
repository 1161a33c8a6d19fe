"""The few asyncio tools that everything else is built from; all else is the standard library.

Rules they stand for (docs/architecture.md, "Async rules"): a cancelled step has stopped before its
undo starts; undo is pushed before its step; long work belongs to one owner task that callers join.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Generic, TypeVar

import structlog

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def finish(coro: Coroutine[object, object, T]) -> T:
    """Await `coro` to its end; a cancellation that arrives meanwhile is re-raised afterwards."""
    task = asyncio.create_task(coro)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is None:
        return task.result()
    if not task.cancelled() and (failure := task.exception()):
        cancelled.add_note(f"while finishing: {failure!r}")
    raise cancelled


async def run_in(executor: Executor, call: Callable[..., T], *args: object) -> T:
    """Run a blocking call on a named executor, with this task's context, to its end.

    A cancellation is held back until the call has returned: a thread cannot be stopped.
    """
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()

    async def wait() -> T:
        return await loop.run_in_executor(executor, functools.partial(context.run, call, *args))

    return await finish(wait())


class Rollback:
    """Undo steps of one verb, run in reverse unless `commit` was called.

    Push an undo before its step. Unwinding stops at the first undo that fails or exceeds
    `step_budget_s`: the row, pushed first, then survives and tells recovery what is left.
    `clean` says after the block whether everything was undone.
    """

    def __init__(self, *, step_budget_s: float) -> None:
        self._steps: list[tuple[str, Callable[[], Awaitable[object]]]] = []
        self._budget_s = step_budget_s
        self._committed = False
        self.clean = True

    def push(self, name: str, undo: Callable[[], Awaitable[object]]) -> None:
        """Register the idempotent `undo` of the step that is about to start."""
        self._steps.append((name, undo))

    def commit(self) -> None:
        """Keep what was done."""
        self._committed = True

    async def __aenter__(self) -> Rollback:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._committed:
            await finish(self._unwind(error))

    async def _unwind(self, error: BaseException | None) -> None:
        for name, undo in reversed(self._steps):
            try:
                async with asyncio.timeout(self._budget_s):
                    await undo()
            except Exception as failure:  # noqa: BLE001 - kept for recovery, told to the caller
                self.clean = False
                log.warning("undo_failed", step=name, error=repr(failure))
                if error is not None:
                    error.add_note(f"undo of {name} failed: {failure!r}")
                return


class KeyedLocks:
    """One asyncio lock per key, made on first use and dropped with its last user."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: Counter[str] = Counter()

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Hold the lock of `key` for the block; only for state transitions, never long awaits."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._users[key] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]


class Owner(Generic[T]):
    """The task that owns one name's long work, with the stage it is in."""

    def __init__(self, key: str, fingerprint: object) -> None:
        self.key = key
        self.fingerprint = fingerprint
        self.stage = "starting"
        self.task: asyncio.Task[T] | None = None


class Owners(Generic[T]):
    """Owner tasks by key. Callers join the task; their own cancellation leaves it running."""

    def __init__(self, *, limit_s: float) -> None:
        self._limit_s = limit_s
        self._owners: dict[str, Owner[T]] = {}

    def get(self, key: str) -> Owner[T] | None:
        """The owner at work on `key`, or None."""
        return self._owners.get(key)

    def all(self) -> list[Owner[T]]:
        """Every owner at work."""
        return list(self._owners.values())

    def start(
        self,
        key: str,
        fingerprint: object,
        work: Callable[[Owner[T]], Coroutine[object, object, T]],
    ) -> Owner[T]:
        """Start `work` as the owner of `key`, which must be free."""
        if key in self._owners:
            raise RuntimeError(f"owner of {key!r} exists")
        owner: Owner[T] = Owner(key, fingerprint)
        self._owners[key] = owner
        owner.task = asyncio.create_task(self._run(owner, work), name=f"owner:{key}")
        owner.task.add_done_callback(self._retrieve)
        return owner

    async def join(self, owner: Owner[T]) -> T:
        """The owner's result; cancelling the caller does not cancel the work."""
        if owner.task is None:
            raise RuntimeError("owner was not started")
        return await asyncio.shield(owner.task)

    async def drain(self, limit_s: float) -> None:
        """Wait for all owners up to `limit_s`, then cancel what is left and await its undo."""
        tasks = {o.task for o in self._owners.values() if o.task is not None}
        if not tasks:
            return
        _done, late = await asyncio.wait(tasks, timeout=limit_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def _run(
        self, owner: Owner[T], work: Callable[[Owner[T]], Coroutine[object, object, T]]
    ) -> T:
        try:
            async with asyncio.timeout(self._limit_s):
                return await work(owner)
        finally:
            del self._owners[owner.key]

    @staticmethod
    def _retrieve(task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # the joiners raise it; without joiners it was logged by its verb
