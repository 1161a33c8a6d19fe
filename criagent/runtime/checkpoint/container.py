# SPDX-License-Identifier: Apache-2.0
"""CheckpointContainer: a running container as one archive; it keeps running (KEP-2008).

    directory → frozen → processes saved → files saved → thawed → archived → published → cleared

The container stands still until its files are saved, so that they fit its memory.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import structlog

from criagent.base import faults
from criagent.base.aio import Owner, finish, run_in
from criagent.base.errors import InvalidRequestError, TimedOutError, WrongStateError
from criagent.image.archive.room import Room
from criagent.image.blobs import disk_full
from criagent.model.container import Container, ContainerId
from criagent.runtime.checkpoint import freezer
from criagent.runtime.checkpoint.capture import Capture, estimated_size
from criagent.runtime.checkpoint.leftovers import CheckpointLeftovers
from criagent.runtime.checkpoint.location import NewFile, check_location, new_file
from criagent.runtime.checkpoint.subjects import Subjects
from criagent.runtime.checkpoint.tar import Interrupted, TarWriter
from criagent.runtime.container.keys import Checkpoints
from criagent.runtime.node.paths import RuntimePaths

_DEFAULT_S = 110.0  # kubelets wait for two minutes unless they are asked for more
_NOT_ARCHIVED = frozenset({"image"})

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ContainerCheckpoint:
    """The CheckpointContainer verb; one task per container."""

    def __init__(
        self,
        *,
        subjects: Subjects,
        checkpoints: Checkpoints,
        capture: Capture,
        leftovers: CheckpointLeftovers,
        paths: RuntimePaths,
        work: Executor,
    ) -> None:
        self._subjects = subjects
        self._checkpoints = checkpoints
        self._capture = capture
        self._leftovers = leftovers
        self._paths = paths
        self._work = work

    async def checkpoint(self, container_id: str, location: str, timeout_s: int) -> None:
        """Write the archive `location`, which must not exist, within `timeout_s` (0 = 110 s).

        After an error there is no archive, and the container runs as before. Raises NotFoundError;
        WrongStateError unless it is running, and while it is being stopped or checkpointed;
        UnsupportedError without CRIU; InvalidRequestError and AlreadyExistsError for the location;
        ExhaustedError, TimedOutError; AgentError with CRIU's own errors.
        """
        if timeout_s < 0:
            raise InvalidRequestError(f"timeout {timeout_s} is negative")
        container = self._subjects.running(container_id)
        self._leftovers.check(container.id)
        limit_s = timeout_s or _DEFAULT_S
        path = await run_in(self._work, check_location, location, self._paths)
        owner = self._checkpoints.get(container.id)
        if owner is not None and owner.fingerprint != path:
            raise WrongStateError(
                f"container {container.id} is being checkpointed to {owner.fingerprint} "
                f"(stage: {owner.stage}); try again when that is done"
            )
        if owner is None:
            work = partial(self._checkpoint, container, path, limit_s)
            owner = self._checkpoints.start(container.id, path, work)
        await joined(self._checkpoints, owner, f"container {container.id}", limit_s)

    async def _checkpoint(
        self, container: Container, path: Path, limit_s: float, owner: Owner[ContainerId, None]
    ) -> None:
        interrupted = interruption()
        try:
            async with asyncio.timeout(limit_s), self._capture.slots:
                await self._make(container, path, interrupted, owner)
        finally:
            await finish(self._leftovers.undo(container.id))
            faults.reach("checkpoint:cleared")
        log.info("container_checkpointed", container_id=container.id, path=str(path))

    async def _make(
        self,
        container: Container,
        path: Path,
        interrupted: Interrupted,
        owner: Owner[ContainerId, None],
    ) -> None:
        top = self._paths.checkpoint(container.id)
        await self._leftovers.clear(container.id)
        await run_in(self._work, _prepare, top, path, container)
        faults.reach("checkpoint:directory")
        owner.stage = "freezer"
        about = await self._subjects.read(container)
        await freezer.freeze(container)
        faults.reach("checkpoint:frozen")
        owner.stage = "CRIU"
        await self._capture.processes(container, top)
        faults.reach("checkpoint:processes")
        owner.stage = "files"
        await self._capture.files(about, top, interrupted)
        faults.reach("checkpoint:files")
        freezer.thaw(container)
        owner.stage = "archive"
        await run_in(self._work, write_archive, top, path, interrupted)


def interruption() -> Interrupted:
    """A function for threads, which raises once the current task was cancelled or is too late."""
    task = asyncio.current_task()

    def check() -> None:
        if task is not None and task.cancelling():
            raise InterruptedError("the checkpoint was given up")

    return check


async def joined(
    checkpoints: Checkpoints, owner: Owner[ContainerId, None], what: str, limit_s: float
) -> None:
    """Wait for the checkpoint of `what`.

    Raises TimedOutError after `limit_s`, although CRIU may have to finish first; WrongStateError
    when a stop has ended it.
    """
    try:
        async with asyncio.timeout(limit_s):
            await checkpoints.join(owner)
    except TimeoutError:
        raise TimedOutError(
            f"checkpoint of {what} was not done within {limit_s:g} s and is given up at the "
            f"stage: {owner.stage}; ask for a longer timeout"
        ) from None
    except asyncio.CancelledError:
        if owner.task is None or not owner.task.cancelled():
            raise
        raise WrongStateError(f"{what} was stopped meanwhile") from None


def _prepare(top: Path, path: Path, container: Container) -> None:
    """Make the directory, and see that there is space for everything twice."""
    with disk_full(top.parent):
        top.mkdir(mode=0o700)
    with new_file(path):
        pass  # the location can be written to
    size = estimated_size(container)
    same = os.stat(path.parent).st_dev == os.stat(top).st_dev
    Room(top).take(2 * size if same else size)
    if not same:
        Room(path.parent).take(size)


def write_archive(top: Path, path: Path, interrupted: Interrupted) -> None:
    """Archive the parts below `top` as `path`, which appears when it is complete; synchronous."""
    with disk_full(path.parent), new_file(path) as file:
        _write(top, file, Room(path.parent), interrupted)
        interrupted()
        faults.reach("checkpoint:archived")
        file.publish()


def _write(top: Path, file: NewFile, room: Room, interrupted: Interrupted) -> None:
    with os.fdopen(os.dup(file.fd), "wb", buffering=1 << 20) as out:
        writer = TarWriter(out, room, interrupted)
        for entry in sorted(top.iterdir()):
            if entry.name in _NOT_ARCHIVED:
                continue
            if entry.is_dir():
                writer.add_tree(entry, entry.name)
            else:
                writer.add_file(entry, entry.name)
        writer.close()
