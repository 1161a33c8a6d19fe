# SPDX-License-Identifier: Apache-2.0
"""The few asyncio tools that everything else is built from; the rest is the standard library.

The rules behind them (docs/architecture.md, "How a verb runs" and "Async rules"): a cancelled step
has stopped before its undo starts; undo is pushed before its step; long work belongs to one owner
task that callers join; work that is not awaited is supervised, so that its failure is logged and
counted.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context, ContextVar
from types import TracebackType
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import structlog

from criagent.base import faults, memory, os_errors
from criagent.base.errors import AgentError, TimedOutError

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
U = TypeVar("U")

# Failures since the start that no caller sees: an undo, a background task, a listener of a store.
FAILURES: Counter[str] = Counter()
FAILURE_KINDS = ("undo", "background", "listener")

# Called with the name of an owner that starts; returns the function that receives each stage, and
# "" after the last.
StageObserver = Callable[[str], None]
STAGES: ContextVar[Callable[[str], StageObserver] | None] = ContextVar("stages", default=None)

KEYED_LOCKS: WeakSet[KeyedLocks] = WeakSet()  # of the process, for a debug report

_supervised: set[asyncio.Task[Any]] = set()

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def finish(coro: Coroutine[object, object, T]) -> T:
    """Await `coro` to its end; a cancellation that arrives meanwhile is re-raised afterwards."""
    return await finished(asyncio.create_task(coro))


async def finished(future: asyncio.Future[T]) -> T:
    """As `finish`, for work that is in progress already."""
    loop = asyncio.get_running_loop()
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        waiter = loop.create_future()
        future.add_done_callback(functools.partial(_wake, waiter))
        try:
            await waiter
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is None:
        return future.result()
    if not future.cancelled() and (failure := future.exception()):
        cancelled.add_note(f"while finishing: {failure!r}")
    raise cancelled


class Outcome(asyncio.Future[T]):
    """What work in another thread gives, which cannot be stopped.

    A cancellation of the task that awaits it is delayed until then. That takes neither another
    task nor another future: the start of a pod waits so a dozen times.
    """

    def cancel(self, msg: object = None) -> bool:
        """Nothing is cancelled."""
        del msg
        return False

    async def whole(self) -> T:
        """Await it; a cancellation that arrived meanwhile is raised then."""
        try:
            return await self
        except asyncio.CancelledError as cancelled:
            failure = self.exception() if self.done() else None
            if failure is not None and failure is not cancelled:
                cancelled.add_note(f"while finishing: {failure!r}")
            raise


def _wake(waiter: asyncio.Future[None], _: object) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def both(
    one: Coroutine[object, object, T], other: Coroutine[object, object, U]
) -> tuple[T, U]:
    """Run both at once and to their ends; then raise the failure of `one`, or that of `other`."""
    first, second = await asyncio.gather(one, other, return_exceptions=True)
    if isinstance(first, BaseException):
        raise first
    if isinstance(second, BaseException):
        raise second
    return first, second


async def run_in(executor: Executor, call: Callable[..., T], *args: object) -> T:
    """Run a blocking call on an executor, with this task's context, to its end.

    A cancellation is delayed until the call has returned: a thread cannot be stopped.
    """
    context = contextvars.copy_context()
    outcome: Outcome[T] = Outcome(loop=asyncio.get_running_loop())
    executor.submit(_fulfil, outcome, functools.partial(context.run, call, *args))
    return await outcome.whole()


def _fulfil(outcome: Outcome[T], work: Callable[[], T]) -> None:
    """Run `work` in this thread; the loop gets its result."""
    tell = outcome.get_loop().call_soon_threadsafe
    try:
        try:
            result = work()
        except BaseException as exc:  # noqa: BLE001 - raised again by who awaits it
            tell(outcome.set_exception, exc)
        else:
            tell(outcome.set_result, result)
    except MemoryError as exc:  # who awaits it would never be told
        memory.end_without(exc, "the answer of a thread")


def detached(work: Coroutine[object, object, T], *, name: str, **facts: object) -> asyncio.Task[T]:
    """A task that outlives the call that starts it, and whose log lines do not name that call.

    Its own context binds `facts` for its log lines. The caller holds the task and handles its
    failure.
    """
    context = Context()
    context.run(structlog.contextvars.bind_contextvars, **facts)
    return asyncio.get_running_loop().create_task(work, name=name, context=context)


def supervised(
    work: Coroutine[object, object, T], *, name: str, **facts: object
) -> asyncio.Task[T]:
    """A detached task that need not be awaited: it is kept alive, and its failure is logged."""
    task = detached(work, name=name, **facts)
    _supervised.add(task)
    task.add_done_callback(_supervised_ended)
    return task


@asynccontextmanager
async def alongside(work: Coroutine[object, object, T]) -> AsyncIterator[asyncio.Task[T]]:
    """A task that lives no longer than the block: at its end it is cancelled, if it still runs.

    Its result or failure is for the block to take; one that the block does not take is dropped.
    """
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        await settle(task)


class Background:
    """At most one background task at a time, for work that is wanted again and again.

    The task is a supervised one: its failure is logged and counted.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether the work is in progress."""
        return self._task is not None and not self._task.done()

    def start(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Begin `work`, unless the last one is still in progress."""
        if not self.running:
            self._task = supervised(work(), name=self._name)

    async def wait(self) -> None:
        """Return when no work is in progress."""
        while self._task is not None and not self._task.done():
            await asyncio.wait({self._task})

    async def stop(self) -> None:
        """Cancel the work and return when it has ended."""
        if self._task is not None:
            await settle(self._task)


async def settle(*tasks: asyncio.Task[Any]) -> None:
    """Cancel `tasks` and return when all have ended; their errors are not raised."""
    late = {task for task in tasks if task.cancel()}
    cancelled: asyncio.CancelledError | None = None
    while late:
        try:
            _, late = await asyncio.wait(late)
        except asyncio.CancelledError as exc:
            cancelled = exc
    for task in tasks:
        if not task.cancelled():
            task.exception()
    if cancelled is not None:
        raise cancelled


def _supervised_ended(task: asyncio.Task[Any]) -> None:
    _supervised.discard(task)
    if not task.cancelled() and (failure := task.exception()) is not None:
        memory.end_without(failure, task.get_name())
        FAILURES["background"] += 1
        log.error("background_failed", task=task.get_name(), exc_info=failure)


class Rollback:
    """Undo steps of one verb, run in reverse unless `commit` was called.

    Push an undo before its step. Unwinding stops at the first undo that fails, is cancelled or
    exceeds `step_budget_s`: the row, pushed first, then survives and shows recovery what is left.
    `clean` says after the block whether everything was undone. The error that leaves the block
    names in a note which undo failed and why. `verb` begins the names of the undos as points of
    `faults`.
    """

    def __init__(self, verb: str, *, step_budget_s: float) -> None:
        self._verb = verb
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
            limit = asyncio.timeout(self._budget_s)
            try:
                async with limit:
                    faults.reach(f"{self._verb}:undo-{name}")
                    await undo()
            except (Exception, asyncio.CancelledError) as failure:
                self.clean = False
                FAILURES["undo"] += 1
                reason = _reason(failure)
                if limit.expired():
                    reason = f"it took longer than {self._budget_s:g} s"
                log.exception("undo_failed", step=name, reason=reason)
                if error is not None:
                    error.add_note(f"undo of {name} failed: {reason}")
                return


def _reason(failure: BaseException) -> str:
    """A text for callers: that of an expected error, otherwise only the class of the error."""
    if isinstance(failure, AgentError):
        return str(failure)
    if isinstance(failure, OSError) and (expected := os_errors.translated(failure)) is not None:
        return str(expected)
    return type(failure).__name__


class KeyedLocks:
    """One asyncio lock per key, created on first use and dropped with its last user.

    `name` is what a debug report calls them.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        KEYED_LOCKS.add(self)
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: Counter[str] = Counter()

    def in_use(self) -> dict[str, int]:
        """The number of users of each lock, holder included; callable from any thread."""
        return dict(self._users)

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


@contextmanager
def staged(work: str, stage: str) -> Iterator[None]:
    """A block that is one stage of the call in whose context it runs: a span of an exported trace.

    `work` says of what, for stages that run side by side.
    """
    observe = STAGES.get()
    if observe is None:
        yield
        return
    hear = observe(work)
    hear(stage)
    try:
        yield
    finally:
        hear("")


class Owner(Generic[K, T]):
    """The task that owns one key's long work, and the stage of that work."""

    def __init__(self, key: K, fingerprint: object, name: str) -> None:
        self.key = key
        self.fingerprint = fingerprint
        self.name = name  # the key as texts and spans show it
        self.task: asyncio.Task[T] | None = None
        self._stage = "starting"
        observe = STAGES.get()
        self._observer = None if observe is None else observe(name)

    @property
    def stage(self) -> str:
        """The current stage; errors and spans name it. Setting it notifies the observer."""
        return self._stage

    @stage.setter
    def stage(self, name: str) -> None:
        self._stage = name
        if self._observer is not None:
            self._observer(name)

    def ended(self) -> None:
        """End the last stage."""
        if self._observer is not None:
            self._observer("")


class Owners(Generic[K, T]):
    """Owner tasks by key. Callers join the task; their own cancellation leaves it running.

    Work that takes over `limit_s` is cancelled and undone; `noun` and `setting`, the configuration
    key of the limit, are for the text of its error. `show` gives a key's text.
    """

    def __init__(
        self,
        *,
        limit_s: float,
        noun: str = "work",
        setting: str = "",
        show: Callable[[K], str] = str,
    ) -> None:
        self._limit_s = limit_s
        self._noun = noun
        self._setting = setting
        self._show = show
        self._owners: dict[K, Owner[K, T]] = {}

    def get(self, key: K) -> Owner[K, T] | None:
        """The owner of `key`, or None."""
        return self._owners.get(key)

    def all(self) -> list[Owner[K, T]]:
        """All owners."""
        return list(self._owners.values())

    def start(
        self,
        key: K,
        fingerprint: object,
        work: Callable[[Owner[K, T]], Coroutine[object, object, T]],
        limit_s: float | None = None,
    ) -> Owner[K, T]:
        """Start `work` as the owner of `key`, which must be free; with a limit of its own, or that
        of all.
        """
        if key in self._owners:
            raise RuntimeError(f"owner of {self._show(key)!r} exists")
        owner: Owner[K, T] = Owner(key, fingerprint, self._show(key))
        self._owners[key] = owner
        owner.task = asyncio.create_task(
            self._run(owner, work, limit_s), name=f"owner:{owner.name}"
        )
        owner.task.add_done_callback(functools.partial(self._ended, owner))
        return owner

    async def join(self, owner: Owner[K, T]) -> T:
        """The owner's result; cancelling the caller does not cancel the work.

        Raises what the work raises, an OSError with the stage as a note, and TimedOutError with
        stage and setting when the limit has passed.
        """
        if owner.task is None:
            raise RuntimeError("owner was not started")
        return await asyncio.shield(owner.task)

    async def run(self, key: K, work: Callable[[Owner[K, T]], Coroutine[object, object, T]]) -> T:
        """Join the owner at work on `key`, or start `work` as it. Raises what `join` raises."""
        return await self.join(self.get(key) or self.start(key, None, work))

    async def cancel(self, chosen: Callable[[K], bool]) -> None:
        """Cancel the work on every key that is `chosen`, and await its undo."""
        owners = [owner for owner in self._owners.values() if chosen(owner.key)]
        if tasks := [owner.task for owner in owners if owner.task is not None]:
            await settle(*tasks)

    async def drain(self, limit_s: float) -> None:
        """Wait for all owners up to `limit_s`, then cancel what is left and await its undo."""
        tasks = {o.task for o in self._owners.values() if o.task is not None}
        if not tasks:
            return
        _done, late = await asyncio.wait(tasks, timeout=limit_s)
        await settle(*late)

    async def _run(
        self,
        owner: Owner[K, T],
        work: Callable[[Owner[K, T]], Coroutine[object, object, T]],
        own_limit_s: float | None,
    ) -> T:
        limit_s = self._limit_s if own_limit_s is None else own_limit_s
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                return await work(owner)
        except OSError as error:
            if not limit.expired():
                error.add_note(f"stage: {owner.stage}")
                raise
            raise self._too_late(owner, error, limit_s) from error
        finally:
            owner.ended()
            del self._owners[owner.key]

    def _too_late(self, owner: Owner[K, T], error: OSError, limit_s: float) -> TimedOutError:
        text = (
            f'{self._noun} "{owner.name}" was not ready within {limit_s:g} s and was '
            f"cancelled at the stage: {owner.stage}"
        )
        if self._setting and limit_s == self._limit_s:
            text += f"; if the node is only slow, raise {self._setting}"
        late = TimedOutError(text)
        for note in getattr(error.__cause__, "__notes__", ()):  # of an undo that failed
            late.add_note(note)
        return late

    def _ended(self, owner: Owner[K, T], task: asyncio.Task[T]) -> None:
        # A task that is cancelled before its first step has not run `_run` at all.
        if self._owners.get(owner.key) is owner:
            del self._owners[owner.key]
            owner.ended()
        if not task.cancelled():
            task.exception()  # the joiners raise it; without joiners it was logged by its verb
