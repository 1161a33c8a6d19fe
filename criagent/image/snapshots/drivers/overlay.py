# SPDX-License-Identifier: Apache-2.0
"""Snapshots for overlayfs: `snapshots/<number>/{fs,work}`.

A layer's `fs` is a lower directory, a container's is its upper directory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from criagent.base.aio import run_in
from criagent.image.blobs import disk_full
from criagent.image.snapshots.driver import Capabilities, LayerPlace, MappedIds, MountPoint
from criagent.image.snapshots.drivers.directories import let_through
from criagent.image.snapshots.drivers.limited import LimitedDirectoryDriver
from criagent.image.snapshots.drivers.overlay_mount import mount_readonly, seen_as
from criagent.kernel import idmap, mount


class OverlayDriver(LimitedDirectoryDriver):
    """Lower and upper directories below `root`, mounted with the kernel's overlayfs."""

    name: Final = "overlay"
    capabilities = Capabilities(
        settles=True,
        selinux_labels=True,
        shared_page_cache=True,
        separate_containers=True,
        upper_directories=True,
    )

    async def facts(self) -> Mapping[str, str]:
        """Options of its mounts, which do not depend on the parameters of the kernel's module."""
        return {
            **mount.overlay_facts(),
            "volatile": "on" if self._section.overlay.volatile else "off",
        }

    async def userns_problem(self, ids: MappedIds) -> str:
        """Try an overlay of the snapshots' directory with mapped ids."""
        return await run_in(self._fs, self._userns_problem, ids)

    def _userns_problem(self, ids: MappedIds) -> str:
        scratch = ids.lower_layers
        _clear(scratch)
        mapped, empty, merged = (scratch / name for name in _SCRATCH)
        try:
            for directory in (mapped, empty, merged):
                directory.mkdir(parents=True)
            pin = os.open(ids.userns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                with idmap.idmapped(self.root, pin, readonly=True) as tree:
                    idmap.attach(tree, mapped)
            except OSError as exc:
                return f"the file system of {self.root} does not support id mapping: {exc.strerror}"
            finally:
                os.close(pin)
            mount.overlay([mapped, empty], None, None, merged)
            if merged.stat().st_uid != ids.uid:
                return "overlay of this kernel does not support layers with mapped ids"
        except OSError as exc:
            return f"an overlay of a layer with mapped ids cannot be mounted: {exc}"
        finally:
            _clear(scratch)
        return ""

    async def create_layer(self, number: int, parent: int | None) -> None:
        """Empty directories: layers are joined when they are mounted."""
        await run_in(self._fs, self._make, number)

    async def create_container(self, number: int, parent: int | None, limit_bytes: int) -> None:
        """Empty directories as well."""
        await run_in(self._fs, self._make_upper, number, limit_bytes)

    def _make_upper(self, number: int, limit_bytes: int) -> None:
        self._make_container(number, limit_bytes, "work")
        self._limit(number, limit_bytes)

    @asynccontextmanager
    async def layer_place(
        self, number: int, below: Sequence[int] | None
    ) -> AsyncIterator[LayerPlace]:
        """The layer's own directory; the worker mounts the lower ones if it needs them."""
        yield LayerPlace(
            root=self._tree(number),
            scratch=self._path(number),
            lower_layers=None if below is None else tuple(map(self._tree, below)),
        )

    async def mount_container(self, number: int, below: Sequence[int], at: MountPoint) -> None:
        """An overlay with the container's upper directory, which its root then owns."""
        await run_in(self._fs, self._mount_container, number, below, at)

    def _mount_container(self, number: int, below: Sequence[int], at: MountPoint) -> None:
        at.path.parent.mkdir(exist_ok=True, mode=0o700)
        at.path.mkdir(exist_ok=True)
        upper, work = self._upper(number), self._container(number) / "work"
        if at.ids is not None:
            let_through(at.path.parent, at.ids)
            for directory in (upper, work):
                os.chown(directory, at.ids.uid, at.ids.gid)
        lower_layers = [self._tree(lower) for lower in below] or [self._fillers[0]]
        options = mount.OverlayOptions(label=at.label, volatile=self._section.overlay.volatile)
        with seen_as(self.root, lower_layers, at.ids) as seen:
            mount.overlay(seen, upper, work, at.path, options)

    async def mount_image(self, layers: Sequence[int], at: MountPoint) -> None:
        """An overlay without an upper directory."""
        trees = [self._tree(layer) for layer in layers]
        await run_in(self._fs, mount_readonly, self.root, trees, self._fillers, at)

    def _make(self, number: int) -> None:
        with disk_full(self.root):
            tree = self._tree(number)
            tree.mkdir(parents=True, mode=0o755)
            tree.chmod(0o755)  # the umask does not apply: this is the image's "/"
            (self._path(number) / "work").mkdir()


_SCRATCH = ("mapped", "empty", "merged")


def _clear(scratch: Path) -> None:
    for name in ("merged", "mapped"):
        mount.detach(scratch / name)
        with contextlib.suppress(FileNotFoundError):
            (scratch / name).rmdir()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(scratch)
