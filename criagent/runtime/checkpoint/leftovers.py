# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint in progress has on the node, and how it goes away: also after a crash.

Its directory comes first and goes last, so it names every container that may be frozen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from pathlib import Path

import structlog

from criagent.base import faults
from criagent.base.aio import run_in, supervised
from criagent.base.errors import WrongStateError
from criagent.kernel import mount
from criagent.kernel.process import process_ref
from criagent.kernel.trees import remove_tree
from criagent.model.common import ProcessRef
from criagent.process.child import ended
from criagent.runtime.checkpoint import freezer
from criagent.runtime.checkpoint.record import read_record
from criagent.runtime.node.paths import RuntimePaths
from criagent.store.containers import ContainerStore

_WAIT_S = 5.0
_AGAIN_S = 1.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class CheckpointLeftovers:
    """Takes checkpoints in progress away."""

    def __init__(self, *, containers: ContainerStore, paths: RuntimePaths, fs: Executor) -> None:
        self._containers = containers
        self._paths = paths
        self._fs = fs
        self._recovering: set[str] = set()

    def check(self, container_id: str) -> None:
        """Raises WrongStateError while an earlier one is not undone."""
        if container_id in self._recovering:
            raise WrongStateError(
                f"an earlier checkpoint of container {container_id} is not undone yet: CRIU still "
                "works for it, or the node fails; try again when it has ended"
            )

    async def undo(self, container_id: str) -> None:
        """The same as `clear`. When it fails, it is tried again until it succeeds: a container that
        stays frozen does not work, and nothing else would notice.
        """
        try:
            faults.reach("checkpoint:undo")
            await self.clear(container_id)
        except (OSError, MemoryError):
            self._undo_later(container_id, {container_id}, lambda: self.clear(container_id))
            raise

    async def undo_pod(
        self, sandbox_id: str, container_ids: Sequence[str], *, complete: bool
    ) -> None:
        """The same for the checkpoint of a pod with these containers; see `clear_pod`."""

        async def clear() -> None:
            await self.clear_pod(sandbox_id, complete=complete)

        try:
            faults.reach("checkpoint-pod:undo")
            await clear()
        except (OSError, MemoryError):
            self._undo_later(sandbox_id, set(container_ids), clear)
            raise

    def _undo_later(
        self, of: str, container_ids: set[str], clear: Callable[[], Coroutine[None, None, None]]
    ) -> None:
        self._recovering |= container_ids

        async def undo() -> None:
            try:
                while True:
                    await asyncio.sleep(_AGAIN_S)
                    try:
                        await clear()
                    except OSError as exc:
                        log.warning("checkpoint_not_undone", id=of, error=str(exc))
                    else:
                        break
            finally:
                self._recovering -= container_ids
            log.info("checkpoint_rolled_back", id=of)

        supervised(undo(), name=f"checkpoint:{of}")

    async def clear(self, container_id: str) -> None:
        """Let the container go on, and remove what its checkpoint has on disk; idempotent.

        Raises OSError.
        """
        directory = self._paths.checkpoint(container_id)
        if (container := self._containers.get(container_id)) is not None:
            freezer.thaw(container)
        await run_in(self._fs, _remove, directory)

    async def clear_pod(self, sandbox_id: str, *, complete: bool) -> None:
        """Let the pod's containers go on, and remove what its checkpoint has on disk; idempotent.

        A `complete` one stays in the caller's directory. Raises OSError.
        """
        directory = self._paths.checkpoint(sandbox_id)
        record = await run_in(self._fs, read_record, directory)
        for container_id in () if record is None else record.containers:
            if (container := self._containers.get(container_id)) is not None:
                freezer.thaw(container)
        if record is not None and not complete:
            await run_in(self._fs, record.remove_files)
        await run_in(self._fs, _remove, directory)

    async def clear_all(self) -> None:
        """After a crash: the same for every checkpoint, in the background if it takes long.

        A CRIU that the last daemon has started still works. It must not be killed, since it has
        put code of its own into the processes, and it freezes them again at its end.
        """
        found = sorted(self._paths.checkpoints.iterdir())
        records = await run_in(self._fs, lambda: [read_record(one) for one in found])
        for directory, record in zip(found, records, strict=True):
            self._recovering |= {directory.name} if record is None else {*record.containers}
        tasks = [
            supervised(self._recover(directory), name=f"checkpoint:{directory.name}")
            for directory in found
        ]
        if tasks:
            await asyncio.wait(tasks, timeout=_WAIT_S)

    async def _recover(self, directory: Path) -> None:
        record = await run_in(self._fs, read_record, directory)
        container_ids = (directory.name,) if record is None else record.containers
        try:
            for container_id in container_ids:
                if (container := self._containers.get(container_id)) is not None:
                    freezer.thaw(container)
            for container_id in container_ids:
                for runtime in await run_in(self._fs, _runtimes_at_work, container_id):
                    await ended(runtime)
            if record is None:
                await self.clear(directory.name)
            else:
                await self.clear_pod(directory.name, complete=False)
        except OSError as exc:
            log.warning("checkpoint_not_removed", path=str(directory), error=str(exc))
        else:
            log.info("checkpoint_rolled_back", id=directory.name)
        finally:
            self._recovering.difference_update(container_ids)


def _remove(directory: Path) -> None:
    mount.detach_below(directory)
    with contextlib.suppress(FileNotFoundError):
        remove_tree(directory)


def _runtimes_at_work(container_id: str) -> list[ProcessRef]:
    """OCI runtimes that write a checkpoint of the container, from /proc."""
    found = []
    marks = {container_id.encode(), b"checkpoint", b"--image-path"}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if marks.issubset(argv):
            ref = process_ref(int(entry.name))
            if ref is not None:
                found.append(ref)
    return found
