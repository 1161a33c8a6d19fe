# SPDX-License-Identifier: Apache-2.0
"""Snapshots joined by the program fuse-overlayfs: `snapshots/<number>/{fs,work,mnt}`.

For file systems and kernels on which overlayfs cannot be mounted. Layers are written through a
mount of the program at `mnt`, so it alone decides how removals are stored: as devices or, where
those cannot be made, as files `.wh.NAME` (its manual page). The program runs in the background for
each mount and ends with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from criagent.base import faults
from criagent.base.aio import finish, run_in
from criagent.base.errors import AgentError, UnsupportedError
from criagent.base.os_errors import of_the_agent
from criagent.image.blobs import disk_full
from criagent.image.snapshots.content_count import ContentCount, content_count
from criagent.image.snapshots.content_problem import content_problem
from criagent.image.snapshots.driver import (
    Capabilities,
    LayerPlace,
    MappedIds,
    MountPoint,
    Taken,
)
from criagent.image.snapshots.drivers.directories import DirectoryDriver, let_through
from criagent.image.snapshots.tree_count import TreeCount
from criagent.kernel import mount
from criagent.kernel.trees import remove_tree
from criagent.model.image import Snapshot
from criagent.process.child import Options, run

_PROGRAM = "fuse-overlayfs"
_DEVICE = Path("/dev/fuse")
_LIMIT_S = 60.0
_SEPARATORS = ":,\\"  # of options and of layers in them
_NOISE = "unknown argument ignored"  # it says so of options that libfuse adds


class FuseOverlayfsDriver(DirectoryDriver):
    """Lower and upper directories below `root`, mounted with fuse-overlayfs."""

    name: Final = "fuse-overlayfs"
    capabilities: Final = Capabilities(
        settles=False, selinux_labels=False, shared_page_cache=False, separate_containers=True
    )

    async def prepare(self) -> None:
        """Make the fixed directories, and try the program on their file system."""
        for top in self._tops:
            if any(separator in str(top) for separator in _SEPARATORS):
                raise UnsupportedError(
                    f"fuse-overlayfs takes no path with a colon, comma or backslash: {top}; set "
                    "another directory"
                )
        if not _DEVICE.exists():
            raise UnsupportedError(
                f"the storage driver fuse-overlayfs needs {_DEVICE}; run `modprobe fuse`"
            )
        await super().prepare()
        await run_in(self._fs, mount.share, self.root)
        await run_in(self._fs, self._prepare_trial)
        try:
            await self._join([self._trial / "low"], self._trial, self._trial / "mnt")
            await run_in(self._fs, self._try_removal)
        except OSError as exc:
            raise UnsupportedError(
                f"fuse-overlayfs does not work on the file system of {self.root}: {exc.strerror}"
            ) from exc
        finally:
            await run_in(self._fs, mount.detach, self._trial / "mnt")

    @property
    def _trial(self) -> Path:
        return self.root / "trial"

    def _prepare_trial(self) -> None:
        mount.detach(self._trial / "mnt")  # a start was killed
        with disk_full(self.root):
            for name in ("fs", "work"):
                remove_tree(self._trial / name)
            for name in ("low", "fs", "work", "mnt"):
                (self._trial / name).mkdir(parents=True, exist_ok=True)
            (self._trial / "low/file").touch()

    def _try_removal(self) -> None:
        with disk_full(self.root):
            (self._trial / "mnt/file").unlink()
        if os.listdir(self._trial / "mnt"):
            raise UnsupportedError(
                f"fuse-overlayfs cannot store removals on the file system of {self.root}"
            )

    async def facts(self) -> Mapping[str, str]:
        """Its version."""
        ended = await self._run(["--version"])
        lines = [line for line in ended.split("\n") if line.startswith(_PROGRAM)]
        return {_PROGRAM: lines[0].rpartition(" ")[2] if lines else "unknown"}

    async def userns_problem(self, ids: MappedIds) -> str:
        """Try a mount with mapped ids."""
        target = self._trial / "mnt"
        try:
            await self._join([self._trial / "low"], None, target, ids)
            facts = await run_in(self._fs, target.stat)
        except (OSError, AgentError) as exc:
            return f"fuse-overlayfs cannot map ids: {exc}"
        finally:
            await run_in(self._fs, mount.detach, target)
        return "" if facts.st_uid == ids.uid else "this version of fuse-overlayfs cannot map ids"

    # Layers.

    async def create_layer(self, number: int, parent: int | None) -> None:
        """Empty directories: layers are joined when they are mounted."""
        await run_in(self._fs, self._make, number)

    async def create_container(self, number: int, parent: int | None, limit_bytes: int) -> None:
        """Empty directories as well."""
        await run_in(self._fs, self._make_container, number, limit_bytes, "work")

    @asynccontextmanager
    async def layer_place(
        self, number: int, below: Sequence[int] | None
    ) -> AsyncIterator[LayerPlace]:
        """The lowest layer's own directory, or a mount of the layer with those below it."""
        directory = self._path(number)
        if not below:
            yield LayerPlace(root=self._tree(number), scratch=directory)
            return
        target = directory / "mnt"
        await self._join([self._tree(lower) for lower in below], directory, target)
        faults.reach("fuse-overlayfs:layer-mounted")
        try:
            yield LayerPlace(root=target, scratch=directory, in_place=True)
        finally:
            await finish(run_in(self._fs, _unmount, target))
        faults.reach("fuse-overlayfs:layer-unmounted")

    async def commit_layer(self, number: int) -> Taken | None:
        """Count what is of this layer alone; the worker saw those below too."""
        return await run_in(self._fs, self._commit_layer, number)

    def _commit_layer(self, number: int) -> Taken:
        tree = self._tree(number)
        count = TreeCount(tree)
        count.advance(math.inf)
        used_bytes, inodes = count.usage
        with disk_full(self.root):
            self._count_file(number).write_text(json.dumps(content_count(tree)))
        faults.reach("fuse-overlayfs:layer-counted")
        return Taken(used_bytes=used_bytes, inodes=inodes)

    async def problem(self, layer: Snapshot) -> str:
        """Compare the files of this layer with their count."""
        return await run_in(self._fs, self._problem, layer)

    def _problem(self, layer: Snapshot) -> str:
        tree = self._tree(layer.number)
        if not tree.exists():
            return "the layer's directory is missing"
        try:
            count = ContentCount(*json.loads(self._count_file(layer.number).read_bytes()))
        except (OSError, ValueError, TypeError) as exc:
            if isinstance(exc, OSError) and of_the_agent(exc):
                raise
            return f"the layer's count of files cannot be read: {exc}"
        counted = dataclasses.replace(
            layer, entries=count.names, content_bytes=count.size, facts=count.facts
        )
        return content_problem(counted, tree)

    def _count_file(self, number: int) -> Path:
        return self._path(number) / "count.json"

    # Mounts.

    async def mount_container(self, number: int, below: Sequence[int], at: MountPoint) -> None:
        """A mount with the container's upper directory; files keep the image's owners on disk."""
        _no_label(at)
        await run_in(self._fs, self._prepare_target, at)
        layers = [self._tree(lower) for lower in below]
        await self._join(layers, self._container(number), at.path, at.ids)

    async def mount_image(self, layers: Sequence[int], at: MountPoint) -> None:
        """A mount without an upper directory, which the program refuses to write to."""
        _no_label(at)
        await run_in(self._fs, lambda: at.path.mkdir(parents=True, exist_ok=True))
        await self._join([self._tree(layer) for layer in layers], None, at.path, at.ids)

    def _prepare_target(self, at: MountPoint) -> None:
        at.path.parent.mkdir(exist_ok=True, mode=0o700)
        at.path.mkdir(exist_ok=True)
        if at.ids is not None:
            let_through(at.path.parent, at.ids)

    async def _join(
        self,
        layers: Sequence[Path],
        own: Path | None,
        target: Path,
        ids: MappedIds | None = None,
    ) -> None:
        """Mount `layers`, topmost first, at `target`, writable with `fs` and `work` of `own`."""
        lowerdir = ":".join(map(str, layers or [self._fillers[0]]))
        options = [f"lowerdir={lowerdir}"]
        if own is not None:
            await run_in(self._fs, _make_work, own)
            options += [f"upperdir={own / 'fs'}", f"workdir={own / 'work'}"]
        if ids is not None:
            options += [f"uidmapping=0:{ids.uid}:{ids.length}"]
            options += [f"gidmapping=0:{ids.gid}:{ids.length}"]
        await self._run(["-o", ",".join(options), str(target)])

    async def _run(self, arguments: Sequence[str]) -> str:
        """It returns when the mount is there, and leaves its own process in the background.

        The command line takes as many layers as overlayfs, 500: an argument may have 128 KiB.
        """
        argv = [_PROGRAM, *arguments]
        env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        try:
            ended = await run(argv, limit_s=_LIMIT_S, keep=16384, options=Options(env=env))
        except FileNotFoundError:
            raise UnsupportedError(
                "the storage driver fuse-overlayfs needs the program fuse-overlayfs; install "
                "fuse-overlayfs (Debian, Ubuntu, Fedora)"
            ) from None
        if ended.status:
            said = [line for line in ended.errors.split("\n") if line and _NOISE not in line]
            raise AgentError(f"fuse-overlayfs: {' '.join(said)[-300:] or ended.status}")
        return ended.output + ended.errors

    # Removal.

    def _make(self, number: int) -> None:
        with disk_full(self.root):
            tree = self._tree(number)
            tree.mkdir(parents=True, mode=0o755)
            tree.chmod(0o755)  # the umask does not apply: this is the image's "/"
            for name in ("work", "mnt"):
                (self._path(number) / name).mkdir()

    def _trash_one(self, number: int) -> None:
        mount.detach(self._path(number) / "mnt")  # of a layer whose writing was killed
        super()._trash_one(number)


def _make_work(own: Path) -> None:
    """The program's own directory: on a full disk it would say that it does not exist."""
    with disk_full(own):
        (own / "work/work").mkdir(exist_ok=True)


def _unmount(target: Path) -> None:
    """Wait until what was written is in the layer, unless the program was killed."""
    with contextlib.suppress(OSError):
        mount.umount2(target)
    mount.detach(target)


def _no_label(at: MountPoint) -> None:
    if at.label:
        raise UnsupportedError(
            "the storage driver fuse-overlayfs has no SELinux labels; "
            'set runtime.selinux = "off" or storage.driver = "overlay"'
        )
