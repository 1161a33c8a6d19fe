# SPDX-License-Identifier: Apache-2.0
"""The parts of a container's checkpoint, written into a directory while the container stands still.

checkpoint/       CRIU's images: processes, memory, open files
dump.log, stats-dump   what CRIU logged and counted
rootfs-diff.tar   what the container changed in its image
deleted.files     what it deleted there
container.log     its log
config.dump …     `documents.py`
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from criagent.base.aio import run_in
from criagent.base.errors import AgentError
from criagent.image.archive.room import Room
from criagent.image.blobs import disk_full
from criagent.image.snapshots.by_handler import SnapshotsByHandler
from criagent.image.snapshots.changes import Ids, Trees, changes
from criagent.image.snapshots.driver import MountPoint
from criagent.kernel import cgroupfs, mount
from criagent.model.common import IdMapping
from criagent.model.container import Container
from criagent.runtime.checkpoint.criu import last_errors, write_options
from criagent.runtime.checkpoint.documents import (
    Subject,
    mount_points,
    write_deleted,
    write_documents,
)
from criagent.runtime.checkpoint.record import IMAGES
from criagent.runtime.checkpoint.tar import Interrupted, TarWriter
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.runtime import OciRuntime

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_ONCE = 4  # threads of `work`
_LOG_MOST = 256 << 20  # kubelets rotate long before
_MEMORY = (b"RssAnon:", b"RssShmem:", b"VmSwap:")


class Capture:
    """Writes the parts of checkpoints."""

    def __init__(
        self,
        *,
        runtimes: Mapping[str, OciRuntime],
        drivers: SnapshotsByHandler,
        paths: RuntimePaths,
        now_ns: Callable[[], int],
        work: Executor,
    ) -> None:
        self._runtimes = runtimes
        self._drivers = drivers
        self._paths = paths
        self.now_ns = now_ns
        self._work = work
        # A frozen container must not wait for the archive of another: one thread for each.
        self.slots = asyncio.Semaphore(_AT_ONCE)

    async def processes(self, container: Container, top: Path) -> None:
        """Save the processes below `top`. Raises AgentError with CRIU's own errors."""
        images = top / IMAGES
        await run_in(self._work, self._prepare, images)
        try:
            await self._runtimes[container.handler].checkpoint(
                container.id, images, top, self._paths.criu_home
            )
        except AgentError as exc:
            reason = await run_in(self._work, last_errors, top / "dump.log")
            if not reason:
                raise
            raise AgentError(
                f"container {container.id} cannot be checkpointed: CRIU, called by "
                f"{container.handler}: {reason}"
            ) from exc

    async def files(self, about: Subject, top: Path, interrupted: Interrupted) -> None:
        """Save what is not in memory below `top`. Raises AgentError, OSError."""
        container = about.container
        part = self._drivers.of_container(container.id)
        layer = part.store.owned(container.id)
        image = top / "image"
        try:
            await part.mount_image("" if layer is None else layer.parent, MountPoint(path=image))
            upper = None if layer is None else part.upper(layer)
            write = partial(self._write, about, top, upper, interrupted)
            await run_in(self._work, write)
        finally:
            await run_in(self._work, mount.detach, image)

    def _prepare(self, images: Path) -> None:
        images.mkdir(mode=0o700)
        write_options(self._paths.criu_home)  # whoever cleaned up the run directory

    def _write(
        self, about: Subject, top: Path, upper: Path | None, interrupted: Interrupted
    ) -> None:
        container = about.container
        with disk_full(top):
            write_documents(top, about, self.now_ns())
            if container.log_path:
                _copy_log(Path(container.log_path), top / "container.log")
            userns = about.sandbox.spec.security.namespaces.pod_userns
            ids = Ids(_seen(userns.uids if userns else ()), _seen(userns.gids if userns else ()))
            skipped = mount_points(about.spec)
            with (
                contextlib.closing(_opened(self._paths, container, top / "image", upper)) as trees,
                (top / "rootfs-diff.tar").open("xb") as out,
            ):
                os.fchmod(out.fileno(), 0o600)
                writer = TarWriter(out, Room(top), interrupted)
                deleted = writer.add_changes(changes(trees, ids, skipped=skipped), ids)
                writer.close()
            write_deleted(top, deleted)


def estimated_size(container: Container) -> int:
    """Bytes that the processes' memory may take; synchronous."""
    with cgroupfs.Reader(container.cgroup) as files:
        memory = files.flat("memory.stat")
        swapped = files.number("memory.swap.current") or 0
    if memory is not None:
        return memory.get(b"anon", 0) + memory.get(b"shmem", 0) + swapped
    total = 0  # the kernel has no memory controller
    for pid in cgroupfs.processes(container.cgroup) or ():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
                if line.startswith(_MEMORY):
                    total += int(line.split()[1]) << 10
    return total


@dataclasses.dataclass(frozen=True, slots=True)
class _Shift:
    mappings: tuple[IdMapping, ...]

    def __call__(self, number: int) -> int:
        for one in self.mappings:
            if one.host_id <= number < one.host_id + one.length:
                return number - one.host_id + one.container_id
        return number


def _seen(mappings: tuple[IdMapping, ...]) -> Callable[[int], int]:
    """The function from an id on the node to the one that the container sees."""
    return _Shift(mappings)


def _opened(paths: RuntimePaths, container: Container, image: Path, upper: Path | None) -> Trees:
    with contextlib.ExitStack() as opened:

        def one(path: Path) -> int:
            fd = os.open(path, _OPEN)
            opened.callback(os.close, fd)
            return fd

        trees = Trees(
            one(paths.rootfs(container.id)), one(image), None if upper is None else one(upper)
        )
        opened.pop_all()
    return trees


def _copy_log(log: Path, target: Path) -> None:
    """The log as it is now; a symlink, or a file that is not regular, is not followed."""
    try:
        fd = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # removed, or replaced by a symlink
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            return
        Room(target.parent).take(min(facts.st_size, _LOG_MOST))
        os.lseek(fd, max(facts.st_size - _LOG_MOST, 0), os.SEEK_SET)
        with target.open("xb") as out:
            os.fchmod(out.fileno(), 0o600)
            left = min(facts.st_size, _LOG_MOST)
            while left and (data := os.read(fd, min(left, 1 << 20))):
                out.write(data)
                left -= len(data)
    finally:
        os.close(fd)
