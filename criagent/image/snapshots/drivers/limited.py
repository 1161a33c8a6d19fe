# SPDX-License-Identifier: Apache-2.0
"""Drivers whose writable layers are directories that a project quota can limit (xfs, ext4).

A limited layer's directory `<number>`, its declared volumes included, is a project of its own (man
2 ioctl_fs_ioc_fsgetxattr), whose id is from `storage.project_ids_from` upwards. A directory says
itself which id it has, and an id that anything belongs to is not taken, nor one that the operator
names (man 5 projects, man 5 projid): so agents, the kubelet's quotas of emptyDirs and others can
share a file system. Layers without a limit belong to no project.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from criagent.base import faults
from criagent.base.errors import AgentError
from criagent.config.storage_section import Storage
from criagent.image.blobs import disk_full
from criagent.image.snapshots.driver import Capabilities
from criagent.image.snapshots.drivers.directories import DirectoryDriver, no_limit
from criagent.kernel import project_quota
from criagent.kernel.file_systems import file_system

_LAST_ID: Final = 2**32 - 2
_TRIES = 1000
_NAMED = {"projects": 0, "projid": 1}  # files of /etc, and the field of a line that has the id


class LimitedDirectoryDriver(DirectoryDriver):
    """Adds limits to the writable layers of a driver of directories."""

    capabilities: Capabilities

    def __init__(self, root: Path, section: Storage, fs: Executor) -> None:
        super().__init__(root, section, fs)
        self._first_id = section.project_ids_from
        self._choosing = threading.Lock()  # two layers must not take one id

    async def facts(self) -> Mapping[str, str]:
        """Whether there are project quotas."""
        why = self.capabilities.no_size_limits
        return {**await super().facts(), "project quota": why or "enforced"}

    def _prepare(self) -> None:
        super()._prepare()
        why = limits_problem(self.containers_root)
        self.capabilities = dataclasses.replace(
            self.capabilities, size_limits=not why, no_size_limits=why
        )

    def _adopt(self, directory: Path, limit_bytes: int) -> None:
        """Give a new writable layer, which is empty, a project if it is to be limited."""
        if not limit_bytes:
            return
        if not self.capabilities.size_limits:
            no_limit(self.name, limit_bytes, self.capabilities.no_size_limits)
        with self._choosing, _opened(directory) as fd:
            project_quota.adopt(fd, self._free_id(fd))
        faults.reach("container-limit:adopted")

    def _free_id(self, fd: int) -> int:
        """An id that nothing belongs to, beginning with one that is likely to be free."""
        number = self._first_id + int(os.fstat(fd).st_ino) % (_LAST_ID - self._first_id + 1)
        named = named_ids()
        for _ in range(_TRIES):
            if number not in named:
                found = project_quota.usage(fd, number)
                if not found.inodes and not found.limit_bytes:
                    return number
            number = self._first_id if number >= _LAST_ID else number + 1
        raise AgentError(
            f"no free project id was found for a writable layer in {self.containers_root}: "
            f"{_TRIES} ids from {number - _TRIES} are in use; set another storage.project_ids_from"
        )

    def _limit(self, number: int, limit_bytes: int) -> None:
        """Let the layer grow by `limit_bytes` from what it has now."""
        if not limit_bytes:
            return
        with disk_full(self.containers_root), _opened(self._container(number)) as fd:
            own, _ = project_quota.project(fd)
            size = project_quota.usage(fd, own).used_bytes + limit_bytes
            project_quota.limit(fd, own, size)
        faults.reach("container-limit:limited")

    def _delete(self, entry: Path) -> None:
        """Its limit goes before its files, whose inodes keep the id taken.

        xfs counts the inodes of deleted files for a while, so afterwards nothing shows whose they
        were.
        """
        if self.capabilities.size_limits and entry.parent.parent == self.containers_root:
            with _opened(entry) as fd:
                own, _ = project_quota.project(fd)
                if own >= self._first_id:
                    self._forget(fd, project_quota.usage(fd, own))
        super()._delete(entry)

    def _sweep(self, known: frozenset[int]) -> None:
        """Limits that belong to nothing go too: the directory was deleted by hand."""
        super()._sweep(known)
        if self.capabilities.size_limits:
            with _opened(self.containers_root) as fd:
                for one in list(project_quota.projects(fd, self._first_id, _LAST_ID)):
                    if not one.inodes:
                        self._forget(fd, one)

    def _forget(self, fd: int, one: project_quota.Project) -> None:
        if one.limit_bytes:
            project_quota.limit(fd, one.id, 0)
            faults.reach("container-limit:forgotten")


def named_ids(etc: Path = Path("/etc")) -> frozenset[int]:
    """The ids of the operator's projects, which may be empty. Raises OSError.

    Lines that are no entry are passed over, as by xfs_quota.
    """
    found = set()
    for name, field in _NAMED.items():
        with contextlib.suppress(FileNotFoundError):
            for line in (etc / name).read_text(errors="replace").splitlines():
                fields = line.split(":")
                number = fields[field].strip() if len(fields) > field else ""
                if number.isascii() and number.isdigit() and not line.startswith("#"):
                    found.add(int(number))
    return frozenset(found)


def limits_problem(directory: Path) -> str:
    """Why writable layers in `directory` can't be limited, with the cure; "" = they can."""
    with _opened(directory) as fd:
        if not project_quota.enforced(fd):
            return _without_quota(directory)
        own, inherited = project_quota.project(fd)
    if inherited:
        return (
            f"{directory} belongs to project {own}, and a layer cannot belong to two; take it out "
            f"of the project (chattr -P {directory})"
        )
    return ""


def _without_quota(directory: Path) -> str:
    place = file_system(directory)
    text = f"{directory} is on {place.type} without project quotas"
    if place.type == "xfs":
        return f"{text}; mount {place.mountpoint} with the option prjquota"
    if place.type == "ext4":
        return (
            f"{text}; unmount it, run `tune2fs -O project,quota -Q prjquota {place.source}`, and "
            "mount it with the option prjquota"
        )
    return (
        f"{text}; put storage.root or storage.containers_root on xfs or ext4 with prjquota, or "
        'take storage.driver = "btrfs"'
    )


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
