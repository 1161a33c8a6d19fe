# SPDX-License-Identifier: Apache-2.0
"""Host paths of a pod, resolved so that an unreachable server behind one blocks nothing.

A path on a local file system is resolved directly. Any other (NFS, FUSE, …) is resolved by a child
process with a time limit, which may stay behind in the kernel's uninterruptible sleep.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import os
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Literal

from criagent.base.aio import run_in
from criagent.base.errors import InvalidRequestError, TimedOutError
from criagent.kernel.mount import MountEntry, mountinfo
from criagent.model.common import MountPropagation
from criagent.model.container import Mount
from criagent.process.child import Child, Pipes, spawn
from criagent.process.pipe_ends import PipeReader, up_to
from criagent.runtime.spec.inputs import ResolvedMount

_LIMIT_S = 5.0
_LINKS = 40  # as the kernel (man 7 path_resolution)
LOCAL = frozenset(
    "bcachefs binfmt_misc bpf btrfs cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs erofs "
    "exfat ext2 ext3 ext4 f2fs hugetlbfs iso9660 mqueue nsfs overlay proc pstore ramfs rootfs "
    "securityfs selinuxfs squashfs sysfs tmpfs tracefs vfat xfs zfs".split()
)
_LOOK = """import json, os, sys
path, make = sys.argv[1:]
os.umask(0o022)
try:
    if make == "make" and not os.path.exists(path):
        os.makedirs(path, 0o755)
    print(json.dumps({"real": os.path.realpath(path, strict=True)}))
except OSError as exc:
    print(json.dumps({"error": exc.strerror}))
"""

_PROPAGATION: dict[MountPropagation, Literal["rprivate", "rslave", "rshared"]] = {
    MountPropagation.PRIVATE: "rprivate",
    MountPropagation.HOST_TO_CONTAINER: "rslave",
    MountPropagation.BIDIRECTIONAL: "rshared",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostPaths:
    """Resolves the mounts of a container. `own` are directories that must not be mounted privately,
    `never_made` paths that are not made as directories when they are missing.

    `program` is called with a path, and with "make" or "look", and prints one JSON object:
    {"real": …} or {"error": …}.
    """

    fs: Executor
    own: tuple[Path, ...]
    table: Callable[[Sequence[Path]], Sequence[MountEntry]] = mountinfo
    program: tuple[str, ...] = (sys.executable, "-I", "-S", "-c", _LOOK)
    limit_s: float = _LIMIT_S
    never_made: frozenset[str] = frozenset()
    _hung: dict[str, Child] = dataclasses.field(default_factory=dict, init=False)

    async def resolve(self, mounts: Sequence[Mount]) -> tuple[ResolvedMount, ...]:
        """Each mount's source without symlinks, created as a directory when it is missing.

        Raises InvalidRequestError for an impossible path or propagation, TimedOutError for a file
        system that does not answer.
        """
        for mount in mounts:
            _check(mount)
        if not mounts:
            return ()
        table, sources = await run_in(self.fs, self._look_directly, mounts)
        found = []
        for mount, local in zip(mounts, sources, strict=True):
            source = local
            if source is None:
                source = await self._look_in_child(mount)
                # autofs may have mounted it
                table = _by_target(await run_in(self.fs, self.table, ()))
            found.append(self._resolved(mount, source, table))
        return tuple(found)

    def _look_directly(
        self, mounts: Sequence[Mount]
    ) -> tuple[dict[str, MountEntry], list[str | None]]:
        # Most mounts of a full node are the agent's own: a path that leads to none of them does
        # without.
        table = self.table(self.own)
        sources = self._look([*table, *map(_unread, self.own)], mounts)
        if None in sources:
            table = self.table(())
            sources = self._look(table, mounts)
        return _by_target(table), sources

    def _look(self, table: Sequence[MountEntry], mounts: Sequence[Mount]) -> list[str | None]:
        sources = []
        for mount in mounts:
            try:
                sources.append(local_path(mount.host_path, table, make=self._may_make(mount)))
            except OSError as exc:
                raise self._refusal(mount, exc.strerror or "") from None
        return sources

    def _may_make(self, mount: Mount) -> bool:
        return not self.never_made or os.path.normpath(mount.host_path) not in self.never_made

    def _refusal(self, mount: Mount, problem: str) -> InvalidRequestError:
        text = f"host path {mount.host_path}: {problem}"
        if not self._may_make(mount):
            text += "; the path is in runtime.defaults.absent_mount_sources_to_reject"
        return InvalidRequestError(text)

    def _resolved(
        self, mount: Mount, source: str, table: Mapping[str, MountEntry]
    ) -> ResolvedMount:
        try:
            source.encode()
        except UnicodeEncodeError:
            raise InvalidRequestError(
                f"host path {mount.host_path} leads to {source!r}, which is not UTF-8, as OCI "
                "runtimes require"
            ) from None
        _check_propagation(mount, source, table)
        propagation = _PROPAGATION[mount.propagation]
        if propagation == "rprivate" and any(own.is_relative_to(source) for own in self.own):
            propagation = "rslave"  # a private copy would pin our unmounted overlays
        return ResolvedMount(request=mount, source=source, propagation=propagation)

    async def _look_in_child(self, mount: Mount) -> str:
        path, make = mount.host_path, "make" if self._may_make(mount) else "look"
        hung = self._hung.get(path)
        if hung is not None and hung.running:  # one abandoned child per path is enough
            raise TimedOutError(f"host path {path} still does not answer; its file system hangs")
        self._hung.pop(path, None)
        with Pipes() as pipes:
            reader = pipes.output(up_to(1 << 16))
            line = await self._answer(spawn([*self.program, path, make], pipes), reader, path)
        answer = json.loads(line or b'{"error": "the process that looked at it died"}')
        if "error" in answer:
            raise self._refusal(mount, str(answer["error"]))
        return str(answer["real"])

    async def _answer(self, child: Child, reader: PipeReader, path: str) -> bytes | None:
        try:
            async with asyncio.timeout(self.limit_s):
                line = await reader.line()
                child.kill()  # it has finished; the end of its interpreter takes longer
                await child.wait()
                return line
        except (TimeoutError, asyncio.CancelledError) as exc:
            child.kill()  # it may not die before its file system answers; do not wait for it
            self._hung[path] = child
            if isinstance(exc, asyncio.CancelledError):
                raise
            raise TimedOutError(
                f"host path {path} did not answer within {self.limit_s:g} s; its file system hangs"
            ) from None


def local_path(path: str, table: Sequence[MountEntry], *, make: bool = False) -> str | None:
    """`path` without symlinks; None when it leads to a file system that may not answer.

    Walks as the kernel does (man 7 path_resolution), but checks each mount point in `table` before
    it is accessed. With `make`, missing directories of `path` are created with mode 0755; the
    target of a dangling symlink is never created. Raises OSError.
    """
    remote = {entry.target for entry in table if entry.fstype not in LOCAL}
    if "/" in remote:
        return None
    waiting = [(part, True) for part in reversed(path.split("/"))]
    done: list[str] = []
    links = 0
    while waiting:
        part, asked = waiting.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            del done[-1:]
            continue
        here = "/" + "/".join([*done, part])
        if here in remote:
            return None
        target = _link(here, make=make and asked)
        if target is None:
            done.append(part)
            continue
        links += 1
        if links > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.startswith("/"):
            done.clear()
        waiting += [(step, False) for step in reversed(target.split("/"))]
    return "/" + "/".join(done)


def _link(path: str, *, make: bool) -> str | None:
    """Target of the symlink `path`, None for anything else; a missing directory is created on
    demand.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        if not make:
            raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o755)
        mode = os.lstat(path).st_mode
    return os.readlink(path) if stat.S_ISLNK(mode) else None


def _unread(directory: Path) -> MountEntry:
    """Stands for the mounts below `directory`, which are not in the table: `local_path` stops."""
    return MountEntry(
        root="/", target=str(directory), options=frozenset(), tags=(), fstype="", source=""
    )


def _by_target(table: Sequence[MountEntry]) -> dict[str, MountEntry]:
    return {entry.target: entry for entry in table}  # of stacked ones the last is the topmost


def _holder(path: str, table: Mapping[str, MountEntry]) -> MountEntry:
    """The mount that holds `path`."""
    here = path
    while here not in table:
        if here == "/":
            raise InvalidRequestError(f"host path {path[:200]!r} is on no mount of this node")
        here = here.rpartition("/")[0] or "/"
    return table[here]


def _check(mount: Mount) -> None:
    if not mount.host_path.startswith("/") or "\0" in mount.host_path:
        raise InvalidRequestError(
            f"mount {mount.container_path}: host_path {mount.host_path[:200]!r} is not absolute"
        )


def _check_propagation(mount: Mount, source: str, table: Mapping[str, MountEntry]) -> None:
    if mount.propagation is MountPropagation.PRIVATE:
        return
    holder = _holder(source, table)
    if holder.shared:
        return
    if mount.propagation is MountPropagation.HOST_TO_CONTAINER and holder.slave:
        return
    want = "shared" if mount.propagation is MountPropagation.BIDIRECTIONAL else "shared or slave"
    raise InvalidRequestError(
        f'mount {mount.container_path}: path "{source}" is mounted on "{holder.target}" '
        f"but it is not a {want} mount; run `mount --make-rshared {holder.target}` on the "
        "node"
    )
