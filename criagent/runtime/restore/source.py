# SPDX-License-Identifier: Apache-2.0
"""The directory that CheckpointPod wrote, opened for RestorePod.

Whoever owns it may have put anything there. pod.json is read with a limit and believed only if this
node has signed it. Of the rest only the files that it names are opened, never through a symlink,
and each must have the digest that it names.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from criagent.base.aio import run_in
from criagent.base.errors import CorruptError, InvalidRequestError
from criagent.image.archive.room import Room
from criagent.image.blobs import disk_full
from criagent.model.common import ID_PATTERN
from criagent.runtime.checkpoint import manifest
from criagent.runtime.checkpoint.manifest import Archived, Manifest, ManifestKey
from criagent.runtime.checkpoint.record import SHM, archive_name
from criagent.runtime.checkpoint.tar import Interrupted

_MAX_MANIFEST = 64 << 20  # a row is some kilobytes; the kubelet's annotations may be large
_AT_ONCE = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint whose manifest this node has signed."""

    path: Path
    manifest: Manifest

    @contextmanager
    def archive(self, archived: Archived) -> Iterator[IO[bytes]]:
        """The archive of a container, whose content is yet to be compared with its digest."""
        with _opened(self.path, archived.archive) as file:
            if os.fstat(file.fileno()).st_size != archived.size:
                raise changed(archived.archive)
            yield file

    def copy_shm(self, target: Path, interrupted: Interrupted) -> bool:
        """Copy the archive of /dev/shm; False = there is none. Raises CorruptError, OSError."""
        if not self.manifest.shm:
            return False
        digest = hashlib.sha256()
        room = Room(target.parent)
        with _opened(self.path, SHM) as file, disk_full(target.parent), target.open("xb") as out:
            while data := file.read(_AT_ONCE):
                interrupted()
                room.take(len(data))
                digest.update(data)
                out.write(data)
        if digest.hexdigest() != self.manifest.shm_sha256:
            raise changed(SHM)
        return True


@dataclass(frozen=True, slots=True)
class SourceReader:
    """Opens checkpoints in a thread of `work`."""

    key: ManifestKey
    work: Executor

    async def read(self, checkpoint_path: str) -> Source:
        """As `read_source`."""
        return await run_in(self.work, read_source, checkpoint_path, self.key)


def read_source(checkpoint_path: str, key: ManifestKey) -> Source:
    """Raises InvalidRequestError for a path without a checkpoint of this node."""
    shown = repr(checkpoint_path)[:500]
    path = Path(checkpoint_path)
    if not path.is_absolute() or "\0" in checkpoint_path or ".." in path.parts:
        raise InvalidRequestError(f"checkpoint_path {shown} is not an absolute path")
    try:
        with _opened(path, manifest.NAME) as file:
            content = file.read(_MAX_MANIFEST + 1)
    except OSError as exc:
        raise InvalidRequestError(
            f"checkpoint_path {shown} is not a checkpoint: {manifest.NAME}: {exc.strerror}"
        ) from exc
    if len(content) > _MAX_MANIFEST:
        raise InvalidRequestError(f"{manifest.NAME} is larger than {_MAX_MANIFEST} bytes")
    found = key.verified(content)
    for archived in found.containers:
        named = archive_name(archived.container.id)
        if not ID_PATTERN.fullmatch(archived.container.id) or archived.archive != named:
            raise InvalidRequestError(f"{manifest.NAME} names a file that no checkpoint has")
    return Source(path, found)


def changed(name: str) -> CorruptError:
    """The error for a file whose digest is not that of the manifest."""
    return CorruptError(
        f"{name[:200]} of the checkpoint was changed or damaged since it was made; nothing of it "
        "is used"
    )


@contextmanager
def _opened(directory: Path, name: str) -> Iterator[IO[bytes]]:
    """A regular file in `directory`. Raises OSError, InvalidRequestError for anything else."""
    fd = os.open(directory, _DIRECTORY)
    try:
        opened = os.open(name, _FILE, dir_fd=fd)
    finally:
        os.close(fd)
    with os.fdopen(opened, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InvalidRequestError(f"{name} of the checkpoint is not a regular file")
        yield file
