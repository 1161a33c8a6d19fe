# SPDX-License-Identifier: Apache-2.0
"""Snapshots as plain directories, for any file system: `snapshots/<number>/fs`.

Each is a copy of its parent, changed in place; blocks are shared where the file system has reflinks
(man 2 ioctl_ficlone). A root file system is a bind mount, in a user namespace an idmapped one, so
that files have the same owners on disk for every container.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from criagent.base.aio import run_in
from criagent.base.errors import AgentError, ExhaustedError, UnsupportedError
from criagent.image.blobs import disk_full
from criagent.image.snapshots.driver import Capabilities, LayerPlace, MappedIds, MountPoint
from criagent.image.snapshots.drivers.bind_mount import bind, userns_problem
from criagent.image.snapshots.drivers.limited import LimitedDirectoryDriver
from criagent.image.snapshots.drivers.overlay_mount import mount_readonly
from criagent.process.child import Options, run

_FICLONE = 0x40049409
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
_IN_ENGLISH = Options(env={"PATH": os.defpath, "LC_ALL": "C"})


class NativeDriver(LimitedDirectoryDriver):
    """Copies below `root`."""

    name: Final = "native"
    capabilities = Capabilities(
        settles=False, selinux_labels=False, shared_page_cache=False, separate_containers=True
    )

    def _prepare(self) -> None:
        super()._prepare()
        if self._section.native.reflink == "always" and not shares_blocks(self.root):
            raise UnsupportedError(
                f"the file system of {self.root} has no reflinks, and storage.native.reflink is "
                '"always"; set it to "auto", or put storage.root on xfs or btrfs'
            )

    async def facts(self) -> Mapping[str, str]:
        """Whether copies share their blocks."""
        possible = await run_in(self._fs, shares_blocks, self.root)
        shared = possible and self._section.native.reflink != "never"
        return {
            "reflink": self._section.native.reflink,
            "copies share blocks": "yes" if shared else "no",
        }

    async def userns_problem(self, ids: MappedIds) -> str:
        """Try an idmapped mount of the snapshots' directory."""
        return await run_in(self._fs, userns_problem, self.containers_root, ids)

    async def create_layer(self, number: int, parent: int | None) -> None:
        """A copy of `parent`, or an empty directory."""
        await run_in(self._fs, self._make, number)
        if parent is None:
            await run_in(self._fs, self._make_empty, number)
        else:
            await self._copy(self._tree(parent), self._tree(number))

    async def create_container(self, number: int, parent: int | None, limit_bytes: int) -> None:
        """A copy as well."""
        await run_in(self._fs, self._make_container, number, limit_bytes)
        if parent is not None:
            await self._copy(self._tree(parent), self._upper(number))
        await run_in(self._fs, self._limit, number, limit_bytes)

    @asynccontextmanager
    async def layer_place(
        self, number: int, below: Sequence[int] | None
    ) -> AsyncIterator[LayerPlace]:
        """The layer's own directory, which began as a copy of the topmost one below."""
        yield LayerPlace(
            root=self._tree(number),
            scratch=self._path(number),
            in_place=bool(below),
        )

    async def mount_container(self, number: int, below: Sequence[int], at: MountPoint) -> None:
        """Bind the container's copy."""
        await run_in(self._fs, bind, self._upper(number), at, self.name)

    async def mount_image(self, layers: Sequence[int], at: MountPoint) -> None:
        """An overlay of the topmost layer alone: a bind mount could be made writable."""
        trees = [self._tree(layer) for layer in layers[:1]]
        await run_in(self._fs, mount_readonly, self.root, trees, self._fillers, at)

    def _make(self, number: int) -> None:
        with disk_full(self.root):
            self._path(number).mkdir(mode=0o755)

    def _make_empty(self, number: int) -> None:
        with disk_full(self.root):
            self._tree(number).mkdir()
            self._tree(number).chmod(0o755)  # the umask does not apply: this is the image's "/"

    async def _copy(self, source: Path, target: Path) -> None:
        """By cp of coreutils: owners, times, links, attributes, holes, reflinks; without a limit in
        time, since the size of the tree decides."""
        reflink = f"--reflink={self._section.native.reflink}"
        argv: list[str | Path] = ["cp", "-a", "-T", reflink, source, target]
        try:
            ended = await run(argv, limit_s=None, keep=4096, options=_IN_ENGLISH)
        except OSError as exc:
            raise AgentError(f"cp cannot be executed: {exc.strerror}; install coreutils") from exc
        if ended.status:
            output = ended.errors.strip()[-300:]
            if any(reason in output for reason in _FULL):
                raise ExhaustedError(
                    f"no space left below {target.parent.parent}; remove images or enlarge the disk"
                )
            raise AgentError(f"copy of snapshot {source}: {output}")


def shares_blocks(directory: Path) -> bool:
    """Whether its file system has reflinks (man 2 ioctl_ficlone), by a file without a name.

    True as well when that cannot be tried, on a full disk for example.
    """
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    with contextlib.ExitStack() as stack:
        try:
            files = [os.open(directory, flags) for _ in range(2)]
        except OSError as exc:
            return exc.errno != errno.EOPNOTSUPP
        for file in files:
            stack.callback(os.close, file)
        try:
            os.write(files[0], bytes(4096))
            fcntl.ioctl(files[1], _FICLONE, files[0])
        except OSError as exc:
            return exc.errno not in {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY}
    return True
