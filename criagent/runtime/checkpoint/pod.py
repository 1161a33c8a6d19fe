# SPDX-License-Identifier: Apache-2.0
"""CheckpointPod: containers of a pod at one moment, in a directory of the caller's (KEP-5823).

record → all frozen → processes of each saved → files of each saved → all thawed → archived →
manifest → record removed
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import structlog

from criagent.base import faults
from criagent.base.aio import Owner, finish, run_in, settle
from criagent.base.errors import WrongStateError
from criagent.image.archive.room import Room
from criagent.image.blobs import disk_full
from criagent.image.snapshots.changes import Ids, Trees, changes
from criagent.model.container import Container, ContainerId
from criagent.model.sandbox import Sandbox
from criagent.runtime.checkpoint import freezer, manifest
from criagent.runtime.checkpoint.capture import Capture, estimated_size
from criagent.runtime.checkpoint.container import interruption, joined, write_archive
from criagent.runtime.checkpoint.leftovers import CheckpointLeftovers
from criagent.runtime.checkpoint.location import new_file
from criagent.runtime.checkpoint.record import (
    SHM,
    WORK,
    Record,
    archive_name,
    check_output,
    remove_work,
)
from criagent.runtime.checkpoint.subjects import Subjects
from criagent.runtime.checkpoint.tar import Interrupted, TarWriter
from criagent.runtime.container.keys import Checkpoints
from criagent.runtime.node.paths import RuntimePaths
from criagent.version import VERSION

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Pod:
    """What is checkpointed, and where to."""

    sandbox: Sandbox
    containers: Sequence[Container]
    output: Path

    def work(self, container: Container) -> Path:
        return self.output / WORK / container.id


class PodCheckpoint:
    """The CheckpointPod verb."""

    def __init__(
        self,
        *,
        subjects: Subjects,
        checkpoints: Checkpoints,
        capture: Capture,
        leftovers: CheckpointLeftovers,
        key: manifest.ManifestKey,
        paths: RuntimePaths,
        work: Executor,
    ) -> None:
        self._subjects = subjects
        self._checkpoints = checkpoints
        self._capture = capture
        self._leftovers = leftovers
        self._key = key
        self._paths = paths
        self._work = work

    async def checkpoint(
        self, sandbox_id: str, output_path: str, container_ids: Sequence[str], limit_s: float
    ) -> None:
        """Write the checkpoint of these containers into the empty directory within `limit_s`.

        None of them runs between the first capture and the last; all run when this returns or
        raises, and after an error the directory is empty. Raises as `ContainerCheckpoint`, and
        InvalidRequestError for the directory and the list.
        """
        output = await run_in(self._work, check_output, output_path, self._paths)
        sandbox, containers = self._subjects.of_pod(sandbox_id, container_ids)
        for container in containers:
            self._leftovers.check(container.id)
            if (owner := self._checkpoints.get(container.id)) is not None:
                raise WrongStateError(
                    f"container {container.id} is being checkpointed (stage: {owner.stage}); try "
                    "again when that is done"
                )
        pod = _Pod(sandbox=sandbox, containers=containers, output=output)
        first, *others = containers
        work = partial(self._checkpoint, pod, limit_s)
        leader = self._checkpoints.start(first.id, output, work)
        for container in others:  # so that a stop of each ends the checkpoint
            self._checkpoints.start(container.id, output, partial(_follow, leader))
        await joined(self._checkpoints, leader, f"sandbox {sandbox.id}", limit_s)

    async def _checkpoint(self, pod: _Pod, limit_s: float, owner: Owner[ContainerId, None]) -> None:
        interrupted = interruption()
        complete = False
        try:
            async with asyncio.timeout(limit_s), self._capture.slots:
                await self._make(pod, interrupted, owner)
                complete = True
        finally:
            ids = [container.id for container in pod.containers]
            await finish(self._leftovers.undo_pod(pod.sandbox.id, ids, complete=complete))
            faults.reach("checkpoint-pod:cleared")
        log.info("pod_checkpointed", sandbox_id=pod.sandbox.id, path=str(pod.output))

    async def _make(
        self, pod: _Pod, interrupted: Interrupted, owner: Owner[ContainerId, None]
    ) -> None:
        owner.stage = "record"
        await self._leftovers.clear_pod(pod.sandbox.id, complete=False)
        await run_in(self._work, self._prepare, pod)
        faults.reach("checkpoint-pod:record")
        abouts = [await self._subjects.read(container) for container in pod.containers]
        owner.stage = "freezer"
        for container in pod.containers:
            await freezer.freeze(container)
        faults.reach("checkpoint-pod:frozen")
        for number, container in enumerate(pod.containers, 1):
            owner.stage = f"CRIU, container {number} of {len(pod.containers)}"
            await self._capture.processes(container, pod.work(container))
            faults.reach("checkpoint-pod:processes")
        owner.stage = "files"
        for about in abouts:
            await self._capture.files(about, pod.work(about.container), interrupted)
        shm = await run_in(self._work, self._save_shm, pod, interrupted)
        faults.reach("checkpoint-pod:files")
        for container in pod.containers:
            freezer.thaw(container)
        owner.stage = "archives"
        archived = [
            await run_in(self._work, _archived, pod, container, interrupted)
            for container in pod.containers
        ]
        faults.reach("checkpoint-pod:archived")
        signed = await self._key.sign(
            manifest.Manifest(
                version=manifest.VERSION,
                made_at_ns=self._capture.now_ns(),
                agent=VERSION,
                handler=pod.containers[0].handler,
                sandbox=pod.sandbox,
                containers=tuple(archived),
                shm=SHM if shm else "",
                shm_sha256=shm,
            )
        )
        await run_in(self._work, _publish, pod.output, signed)

    def _prepare(self, pod: _Pod) -> None:
        """The record, and see that there is space for everything twice."""
        directory = self._paths.checkpoint(pod.sandbox.id)
        with disk_full(directory.parent):
            directory.mkdir(mode=0o700)
            ids = tuple(container.id for container in pod.containers)
            Record(str(pod.output), ids).write(directory)
        Room(pod.output).take(2 * sum(map(estimated_size, pod.containers)))
        with disk_full(pod.output):
            for container in pod.containers:
                pod.work(container).mkdir(mode=0o700, parents=True)
            (pod.output / WORK).chmod(0o700)
        with new_file(pod.output / manifest.NAME):
            pass  # it can be written to

    def _save_shm(self, pod: _Pod, interrupted: Interrupted) -> str:
        """Archive the pod's own /dev/shm; the digest, "" = it has none."""
        try:
            fd = os.open(self._paths.shm(pod.sandbox.id), _OPEN)
        except FileNotFoundError:
            return ""
        try:
            with disk_full(pod.output), new_file(pod.output / SHM) as file:
                with os.fdopen(os.dup(file.fd), "wb") as out:
                    writer = TarWriter(out, Room(pod.output), interrupted)
                    ids = Ids(int, int)
                    writer.add_changes(changes(Trees(fd, None, None), ids), ids)
                    writer.close()
                file.publish()
        finally:
            os.close(fd)
        return _digest(pod.output / SHM)


async def _follow(leader: Owner[ContainerId, None], owner: Owner[ContainerId, None]) -> None:
    """Last as long as the leader's work; a cancellation ends that."""
    owner.stage = "with the pod"
    if (task := leader.task) is None:
        return
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        await settle(task)
        raise


def _archived(pod: _Pod, container: Container, interrupted: Interrupted) -> manifest.Archived:
    archive = pod.output / archive_name(container.id)
    write_archive(pod.work(container), archive, interrupted)
    return manifest.Archived(
        container=container,
        archive=archive.name,
        sha256=_digest(archive),
        size=archive.stat().st_size,
    )


def _publish(output: Path, signed: bytes) -> None:
    with disk_full(output), new_file(output / manifest.NAME) as file:
        with os.fdopen(os.dup(file.fd), "wb") as out:
            out.write(signed)
        remove_work(output)
        file.publish()
    faults.reach("checkpoint-pod:published")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
