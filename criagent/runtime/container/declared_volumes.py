# SPDX-License-Identifier: Apache-2.0
"""Volumes that an image's configuration declares (VOLUME of a Dockerfile).

As in containerd, each is a directory of the node with the image's content of that path, mounted
over the path: writable under a read-only root, and no overlay on an overlay. It lies beside the
container's writable layer, `snapshots/<number>/volumes/<n>`, is counted and removed with it. A
mount of the request at the same path is used instead.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Literal

import structlog

from criagent.base.aio import run_in
from criagent.base.errors import AgentError, ExhaustedError, InvalidRequestError
from criagent.image.blobs import disk_full
from criagent.image.snapshots.by_handler import SnapshotsByHandler
from criagent.kernel.paths import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, open_in_root, openat2
from criagent.kernel.process import owning
from criagent.model.container import Container, Mount
from criagent.model.image import Snapshot
from criagent.model.sandbox import Sandbox
from criagent.process.child import run
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.spec.inputs import ResolvedMount
from criagent.runtime.spec.mounts.targets import cleaned, is_kernel_place, landing

VolumeMode = Literal["bind", "mkdir", "ignore"]

_LIMIT = 128  # of one image; each needs a directory and a mount
_CURE = 'set runtime.image_volumes = "ignore"'
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredVolumes:
    """Creates the volumes of a container whose root is mounted."""

    mode: VolumeMode
    paths: RuntimePaths
    drivers: SnapshotsByHandler
    fs: Executor

    async def make(
        self, container: Container, sandbox: Sandbox, snapshot: Snapshot, declared: Sequence[str]
    ) -> tuple[ResolvedMount, ...]:
        """The mounts of the `declared` volumes, filled with the image's content.

        With mode "mkdir" the directories are created in the root, for the container's user, without
        mounts. Raises InvalidRequestError for an invalid declaration, ExhaustedError when the disk
        is full, AgentError.
        """
        if not declared or self.mode == "ignore":
            return ()
        places = await run_in(self.fs, self._places, container, declared)
        if self.mode == "mkdir":
            await run_in(self.fs, self._make_places, container, sandbox, places)
            return ()
        mounts = []
        top = self.drivers.of_driver(snapshot.driver).volumes(snapshot)
        for number, place in enumerate(places):
            directory = top / str(number)
            if await run_in(self.fs, self._prepare, container, sandbox, place, directory):
                await self._copy(container, place, directory)
            mounts.append(_mount(place, directory))
        return tuple(mounts)

    def _places(self, container: Container, declared: Sequence[str]) -> list[str]:
        """Paths of the volumes without links, each once, except those that are not created."""
        image = container.spec.image
        if len(declared) > _LIMIT:
            raise InvalidRequestError(
                f"image {image[:200]} declares {len(declared)} volumes, more than {_LIMIT}; "
                f"declare fewer, or {_CURE}"
            )
        root = os.open(self.paths.rootfs(container.id), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            taken = {cleaned(mount.container_path) for mount in container.spec.mounts}
            taken |= {landing(root, path, image) for path in taken}
            places: dict[str, None] = {}
            for text in declared:
                path = cleaned(text)
                if "\0" in path or path == "/":
                    raise InvalidRequestError(
                        f"image {image[:200]} declares the volume {text[:200]!r}, which cannot "
                        f"be mounted; declare another directory, or {_CURE}"
                    )
                place = path if is_kernel_place(path) else landing(root, path, image)
                if is_kernel_place(place):
                    log.info("declared_volume_skipped", container_id=container.id, path=place[:200])
                elif path not in taken and place not in taken:
                    places[place] = None
        finally:
            os.close(root)
        return list(places)

    def _prepare(self, container: Container, sandbox: Sandbox, place: str, directory: Path) -> bool:
        """Whether the image has files at `place` to be copied with their directory.

        Otherwise the directory is created, with the image's owner and mode or else root's.
        """
        content = self._content(container, place)
        userns = sandbox.spec.security.namespaces.pod_userns
        owner, mode = (0, 0) if userns is None else (userns.root_uid, userns.root_gid), 0o755
        with disk_full(directory.parent):
            directory.parent.mkdir(exist_ok=True, mode=0o700)
            if content is not None:
                try:
                    with os.scandir(content) as entries:
                        if next(entries, None) is not None:
                            return True
                    facts = os.fstat(content)
                    owner, mode = (facts.st_uid, facts.st_gid), stat.S_IMODE(facts.st_mode)
                finally:
                    os.close(content)
            directory.mkdir(mode=0o700)
            os.chown(directory, *owner)
            directory.chmod(mode)
        return False

    async def _copy(self, container: Container, place: str, directory: Path) -> None:
        """Copy a directory with owners, modes, times, links and attributes, by cp of coreutils.

        The path has no links, and no other process can change the root.
        """
        source = f"{self.paths.rootfs(container.id)}{place}/."
        argv: list[str | Path] = ["cp", "-a", "-T", "--reflink=auto", source, directory]
        try:
            ended = await run(argv, limit_s=None, keep=4096)
        except OSError as exc:
            raise AgentError(f"cp cannot be executed: {exc.strerror}; install coreutils") from exc
        if ended.status:
            output = ended.errors.strip()[-300:]
            image = container.spec.image[:200]
            text = f"image {image}: copying volume {place[:200]!r} failed: {output}"
            if any(reason in output for reason in _FULL):
                where = self.drivers.of_container(container.id).containers_root
                raise ExhaustedError(f"{text}; free space on the disk of {where}")
            raise AgentError(text)

    def _content(self, container: Container, place: str) -> int | None:
        """The image's content at `place`, None = nothing."""
        root = os.open(self.paths.rootfs(container.id), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return open_in_root(root, place, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise InvalidRequestError(
                f"image {container.spec.image[:200]} declares the volume {place[:200]!r}, but "
                f"has a file at that path; declare a directory, or {_CURE}"
            ) from None
        finally:
            os.close(root)

    def _make_places(self, container: Container, sandbox: Sandbox, places: Sequence[str]) -> None:
        """Create directories of the container's user in its root; existing ones stay."""
        user, userns = container.user, sandbox.spec.security.namespaces.pod_userns
        uid, gid = (0, 0) if user is None else (user.uid, user.gid)
        if userns is not None:
            uid, gid = userns.root_uid + uid, userns.root_gid + gid
        root = os.open(self.paths.rootfs(container.id), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with owning(uid, gid):
                for place in places:
                    _make_below(root, place, (uid, gid))
        except NotADirectoryError as exc:
            raise InvalidRequestError(
                f"image {container.spec.image[:200]} declares a volume at or below "
                f"{str(exc.filename)[:200]!r}, but has a file at that path; {_CURE}"
            ) from None
        finally:
            os.close(root)


def _make_below(root: int, place: str, owner: tuple[int, int]) -> None:
    here = os.dup(root)
    try:
        for part in place.split("/")[1:]:
            try:
                os.mkdir(part, 0o755, dir_fd=here)
            except FileExistsError:
                below = _directory(here, part)
            else:
                below = _directory(here, part)
                os.chown(part, *owner, dir_fd=here, follow_symlinks=False)
            os.close(here)
            here = below
    finally:
        os.close(here)


def _directory(parent: int, name: str) -> int:
    flags = os.O_PATH | os.O_DIRECTORY
    return openat2(parent, name, flags, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)


def _mount(place: str, directory: Path) -> ResolvedMount:
    source = str(directory)
    request = Mount(container_path=place, host_path=source, selinux_relabel=True)
    return ResolvedMount(request=request, source=source, propagation="rprivate")
