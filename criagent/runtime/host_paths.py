"""Host paths that a pod names, looked at so that a dead server behind one blocks nobody.

A path on a local file system is looked at directly. Anything else (NFS, FUSE, …) is looked at by a
child process with a time limit, which may be left behind in the kernel's uninterruptible sleep.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Literal

from criagent.aio import run_in
from criagent.child import PipeReader, spawn
from criagent.errors import InvalidRequestError, TimedOutError
from criagent.kernel.mount import MountEntry, mountinfo
from criagent.model import Mount, MountPropagation
from criagent.runtime.spec_inputs import ResolvedMount

_LIMIT_S = 5.0
_LOCAL = frozenset(
    "bpf btrfs cgroup2 debugfs devtmpfs ext2 ext3 ext4 f2fs hugetlbfs mqueue nsfs overlay proc "
    "ramfs securityfs squashfs erofs sysfs tmpfs tracefs vfat xfs zfs bcachefs devpts".split()
)
_LOOK = """import json, os, sys
path = sys.argv[1]
try:
    if not os.path.exists(path):
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
    """Resolves the mounts of a container. `ours` are directories that must not be kept private."""

    fs: Executor
    ours: tuple[Path, ...]

    async def resolve(self, mounts: Sequence[Mount]) -> tuple[ResolvedMount, ...]:
        """Each mount's source without symlinks, made as a directory when it is missing.

        Raises InvalidRequestError for a path or propagation that cannot be, TimedOutError for a
        file system that does not answer.
        """
        if not mounts:
            return ()
        table = await run_in(self.fs, mountinfo)
        found = []
        for mount in mounts:
            _check(mount)
            source = await self._source(mount.host_path, table)
            _check_propagation(mount, source, table)
            propagation = _PROPAGATION[mount.propagation]
            if propagation == "rprivate" and self._holds_ours(source):
                propagation = "rslave"  # a private copy would keep our unmounted overlays alive
            found.append(ResolvedMount(request=mount, source=source, propagation=propagation))
        return tuple(found)

    def _holds_ours(self, source: str) -> bool:
        return any(own.is_relative_to(source) or Path(source) == own for own in self.ours)

    async def _source(self, path: str, table: Sequence[MountEntry]) -> str:
        if path_is_local(path, table):
            real = await run_in(self.fs, _look_directly, path, table)
            if real is not None:
                return real
        return await _look_in_child(path)


def path_is_local(path: str, table: Sequence[MountEntry]) -> bool:
    """Whether the path's mount is of a file system that always answers, as its text goes."""
    return mount_of(path, table).fstype in _LOCAL


def mount_of(path: str, table: Sequence[MountEntry]) -> MountEntry:
    """The mount that holds `path`, the topmost where several are stacked."""
    best = None
    for entry in table:
        target = entry.target.rstrip("/")
        if (path == target or path.startswith(target + "/")) and (
            best is None or len(target) >= len(best.target.rstrip("/"))
        ):
            best = entry
    if best is None:
        raise InvalidRequestError(f"host path {path[:200]!r} is on no mount of this node")
    return best


def _look_directly(path: str, table: Sequence[MountEntry]) -> str | None:
    """The real path; None when a symlink leads to a file system that may not answer."""
    current = os.path.normpath(path)
    for _ in range(40):
        link = _first_link(current, table)
        if link is None:
            return None
        at, target = link
        if not target:
            try:
                if not os.path.lexists(current):
                    os.makedirs(current, 0o755)
            except OSError as exc:
                raise InvalidRequestError(
                    f"host path {path} cannot be made: {exc.strerror}"
                ) from None
            return current
        rest = current[len(at) :].lstrip("/")
        current = os.path.normpath(os.path.join(os.path.dirname(at), target, rest))
    raise InvalidRequestError(f"host path {path} has too many symbolic links")


def _first_link(path: str, table: Sequence[MountEntry]) -> tuple[str, str] | None:
    """The first symlink on `path` with its target, ("", "") without one, None off local ground."""
    prefix = ""
    for part in path.strip("/").split("/"):
        prefix = f"{prefix}/{part}"
        if not path_is_local(prefix, table):
            return None
        if os.path.islink(prefix):
            return prefix, os.readlink(prefix)
    return "", ""


async def _look_in_child(path: str) -> str:
    read, write = os.pipe()
    reader = PipeReader(read, limit=1 << 16)
    try:
        try:
            child = spawn([sys.executable, "-I", "-S", "-c", _LOOK, path], stdout=write)
        finally:
            os.close(write)
        try:
            async with asyncio.timeout(_LIMIT_S):
                line = await reader.line()
        except TimeoutError:
            child.kill()  # it may not die before its file system answers; nobody waits for it
            raise TimedOutError(
                f"host path {path} does not answer within {_LIMIT_S:.0f} s; its file system hangs"
            ) from None
    finally:
        reader.close()
    answer = json.loads(line or b'{"error": "the child died"}')
    if "error" in answer:
        raise InvalidRequestError(f"host path {path}: {answer['error']}")
    return str(answer["real"])


def _check(mount: Mount) -> None:
    if mount.recursive_read_only:
        if not mount.readonly:
            raise InvalidRequestError(
                f"mount {mount.container_path}: recursive_read_only needs readonly"
            )
        if mount.propagation is not MountPropagation.PRIVATE:
            raise InvalidRequestError(
                f"mount {mount.container_path}: recursive_read_only needs private propagation"
            )


def _check_propagation(mount: Mount, source: str, table: Sequence[MountEntry]) -> None:
    if mount.propagation is MountPropagation.PRIVATE:
        return
    holder = mount_of(source, table)
    if holder.shared:
        return
    if mount.propagation is MountPropagation.HOST_TO_CONTAINER and holder.slave:
        return
    want = "shared" if mount.propagation is MountPropagation.BIDIRECTIONAL else "shared or slave"
    raise InvalidRequestError(
        f"mount {mount.container_path}: {source} lies on {holder.target}, which is not a {want} "
        f"mount; `mount --make-rshared {holder.target}` on the node"
    )
