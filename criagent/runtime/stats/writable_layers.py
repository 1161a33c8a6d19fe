# SPDX-License-Identifier: Apache-2.0
"""Sizes of writable layers, counted in the background by a separate thread and cached.

A container's first count is tried at once, for a moment: most layers are small. One that takes
longer leaves the figure of its creation, when it was empty; a container of an earlier agent has
none until it is counted. After that a figure is at least `_EVERY_S` old before it is counted again,
and a count takes at most one part in `_SHARE` of the time, so that millions of files make only
their own figure older. Counts take turns in slices. A container that has ended is counted once more
and never again.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path

import structlog

from criagent.base.aio import Background, run_in
from criagent.image.snapshots.by_handler import SnapshotsByHandler
from criagent.image.snapshots.driver import Count
from criagent.model.container import Container

_EVERY_S = 15.0  # half of the kubelet's interval for local storage
_SHARE = 20
_SLICE_S = 0.05
_FIRST_S = 0.02

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerUsage:
    """A writable layer at `counted_at_ns`, counted as du does: without deleted files that are still
    open.
    """

    used_bytes: int
    inodes: int
    counted_at_ns: int  # when the count began


@dataclasses.dataclass(slots=True)
class _Job:
    container_id: str
    number: int  # of the snapshot
    count: Count
    began_ns: int
    done: bool = False
    error: OSError | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Known:
    usage: LayerUsage | None
    next_at: float
    began_ns: int


class WritableLayers:
    """Figures by container id, whose root file system is at `rootfs`.

    `fs` runs first counts, `counting` the others.
    """

    def __init__(
        self,
        *,
        drivers: SnapshotsByHandler,
        rootfs: Callable[[str], Path],
        fs: Executor,
        counting: Executor,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        first_s: float = _FIRST_S,
        slice_s: float = _SLICE_S,
    ) -> None:
        self._drivers = drivers
        self._rootfs = rootfs
        self._fs = fs
        self._counting = counting
        self._now_ns = now_ns
        self._monotonic = monotonic
        self._first_s = first_s
        self._slice_s = slice_s
        self._since_ns = now_ns()
        self._known: dict[str, _Known] = {}
        self._jobs: dict[str, _Job] = {}
        self._queue: deque[_Job] = deque()
        self._worker = Background("writable-layers")

    def mountpoint(self, container_id: str) -> str:
        """The directory of the file system that holds the layer."""
        return str(self._drivers.of_container(container_id).containers_root)

    def usage(self, container_id: str) -> LayerUsage | None:
        """The last figures; None if there are none yet."""
        known = self._known.get(container_id)
        return None if known is None else known.usage

    async def refresh(self, containers: Sequence[Container]) -> None:
        """Count the layers of `containers` that are due; waits only for small new ones."""
        new: list[_Job] = []
        for container in containers:
            if (
                container.id not in self._jobs
                and self._due(container)
                and (job := self._job(container.id))
            ):
                (self._queue if container.id in self._known else new).append(job)
        if new:
            try:
                await run_in(self._fs, _advance, new, self._first_s)
            finally:
                self._settle(new)
            self._keep_creation(containers)
        if self._queue:
            self._worker.start(self._work)

    def _keep_creation(self, containers: Sequence[Container]) -> None:
        """The figure of containers whose first count goes on: nothing had been written."""
        for container in containers:
            job, at_ns = self._jobs.get(container.id), container.created_at_ns
            if job is not None and container.id not in self._known and at_ns >= self._since_ns:
                empty = LayerUsage(used_bytes=0, inodes=0, counted_at_ns=at_ns)
                self._known[container.id] = _Known(empty, self._monotonic(), job.began_ns)

    async def settled(self) -> None:
        """Wait until no count is in progress."""
        await self._worker.wait()

    def forget(self, container_id: str) -> None:
        """The container was removed."""
        self._known.pop(container_id, None)
        self._jobs.pop(container_id, None)

    async def close(self) -> None:
        """Stop counting."""
        await self._worker.stop()
        for job in self._queue:
            job.count.close()

    def _due(self, container: Container) -> bool:
        known = self._known.get(container.id)
        if known is None:
            return True
        if container.finished_at_ns and known.began_ns > container.finished_at_ns:
            return False
        return self._monotonic() >= known.next_at

    def _job(self, container_id: str) -> _Job | None:
        part = self._drivers.of_container(container_id)
        snapshot = part.store.owned(container_id)
        if snapshot is None:
            return None
        charged = part.counted(snapshot, self._rootfs(container_id))
        job = _Job(container_id, snapshot.number, charged.count(), self._now_ns())
        self._jobs[container_id] = job
        return job

    async def _work(self) -> None:
        while self._queue:
            jobs = [self._queue.popleft() for _ in range(min(len(self._queue), 100))]
            try:
                await run_in(self._counting, _advance, jobs, self._slice_s)
            finally:
                self._settle(jobs)

    def _settle(self, jobs: Iterable[_Job]) -> None:
        for job in sorted(
            jobs, key=lambda job: job.count.busy_s
        ):  # the long ones go to the end of the queue
            if self._jobs.get(job.container_id) is not job:
                job.count.close()  # its container was removed meanwhile
            elif job.done:
                del self._jobs[job.container_id]
                self._keep(job)
            else:
                self._queue.append(job)

    def _keep(self, job: _Job) -> None:
        wait = max(_EVERY_S, job.count.busy_s * _SHARE)
        usage = self.usage(job.container_id)
        if job.error is not None:
            log.warning(
                "writable_layer_not_counted",
                container_id=job.container_id,
                error=str(job.error),
            )
        else:
            used, inodes = job.count.usage
            usage = LayerUsage(used_bytes=used, inodes=inodes, counted_at_ns=job.began_ns)
            store = self._drivers.of_container(job.container_id).store
            snapshot = store.owned(job.container_id)
            if snapshot is not None and snapshot.number == job.number:
                counted = dataclasses.replace(snapshot, used_bytes=used, inodes=inodes)
                store.remember(counted)  # for the usage of the whole disk
        if not job.count.complete:
            log.warning("writable_layer_partly_counted", container_id=job.container_id)
        self._known[job.container_id] = _Known(usage, self._monotonic() + wait, job.began_ns)


def _advance(jobs: Sequence[_Job], limit_s: float) -> None:
    """In a thread: advance each job in turn, until the time is up; the last one keeps its place."""
    until = time.monotonic() + limit_s
    for job in jobs:
        try:
            job.done = job.count.advance(until)
        except OSError as exc:
            job.done, job.error = True, exc
        if time.monotonic() >= until:
            return
