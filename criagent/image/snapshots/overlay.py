# SPDX-License-Identifier: Apache-2.0
"""Snapshots for overlayfs: `snapshots/<number>/{fs,work}`.

A layer's `fs` is a lower directory, a container's is its upper directory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from criagent.base import faults
from criagent.base.aio import run_in
from criagent.image.blobs import disk_full
from criagent.image.snapshots.content_problem import content_problem
from criagent.image.snapshots.directories import NumberedDirectories
from criagent.image.snapshots.driver import Capabilities, LayerPlace, MappedIds, MountPoint
from criagent.kernel import idmap, mount
from criagent.model.image import Snapshot


class OverlayDriver:
    """Lower and upper directories below `root`, mounted with the kernel's overlayfs."""

    name: Final = "overlay"
    capabilities: Final = Capabilities(settles=True, selinux_labels=True, shared_page_cache=True)

    def __init__(self, root: Path, fs: Executor) -> None:
        self.root = root
        self._directories = NumberedDirectories(root)
        self._fs = fs
        self._fillers = (root / "empty", root / "empty-too")

    def prepare(self) -> None:
        """Make the fixed directories."""
        self._directories.prepare()
        for filler in self._fillers:
            filler.mkdir(exist_ok=True)

    def userns_problem(self, ids: MappedIds) -> str:
        """Try an overlay of the snapshots' directory with mapped ids."""
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

    async def create(self, number: int, parent: int | None) -> None:
        """Empty directories: layers are joined when they are mounted."""
        await run_in(self._fs, self._make, number)

    def layer_place(self, number: int, below: Sequence[int] | None) -> LayerPlace:
        """The layer's own directory; the worker mounts the lower ones if it needs them."""
        return LayerPlace(
            root=self._tree(number),
            scratch=self._directories.path(number),
            lower_layers=None if below is None else tuple(map(self._tree, below)),
        )

    def mount_container(self, number: int, below: Sequence[int], at: MountPoint) -> None:
        """An overlay with the container's upper directory, which its root then owns."""
        at.path.parent.mkdir(exist_ok=True, mode=0o700)
        at.path.mkdir(exist_ok=True)
        upper, work = self._tree(number), self._work(number)
        if at.ids is not None:
            _give(at.path.parent, (upper, work), at.ids)
        lower_layers = [self._tree(lower) for lower in below] or [self._fillers[0]]
        with self._seen_as(lower_layers, at.ids) as seen:
            mount.overlay(seen, upper, work, at.path, at.label)

    def mount_image(self, layers: Sequence[int], at: MountPoint) -> None:
        """An overlay without an upper directory."""
        lower_layers = [self._tree(layer) for layer in layers]
        lower_layers += self._fillers[
            : max(0, 2 - len(lower_layers))
        ]  # overlayfs wants two without an upper
        at.path.mkdir(parents=True, exist_ok=True)
        with self._seen_as(lower_layers, at.ids) as seen:
            mount.overlay(seen, None, None, at.path, at.label)

    def volumes(self, number: int) -> Path:
        """`<number>/volumes`."""
        return self._directories.path(number) / "volumes"

    def counted(self, number: int) -> Sequence[Path]:
        """The upper directory and the volumes."""
        volumes = self.volumes(number)
        return [self._tree(number), *([volumes] if volumes.exists() else [])]

    def problem(self, layer: Snapshot) -> str:
        """Compare the lower directory with the layer's row."""
        return content_problem(layer, self._tree(layer.number))

    def trash(self, number: int) -> None:
        """Rename into the trash."""
        self._directories.trash(number)

    def empty_trash(self) -> None:
        """Delete what is there."""
        self._directories.empty_trash()

    def sweep(self, known: frozenset[int]) -> None:
        """Delete other directories."""
        self.prepare()
        self._directories.sweep(known)

    def _tree(self, number: int) -> Path:
        return self._directories.path(number) / "fs"

    def _work(self, number: int) -> Path:
        return self._directories.path(number) / "work"

    def _make(self, number: int) -> None:
        with disk_full(self.root):
            tree = self._tree(number)
            tree.mkdir(parents=True, mode=0o755)
            tree.chmod(0o755)  # the umask does not apply: this is the image's "/"
            self._work(number).mkdir()

    @contextlib.contextmanager
    def _seen_as(
        self, lower_layers: Sequence[Path], ids: MappedIds | None
    ) -> Iterator[Sequence[Path]]:
        """`lower_layers` as lowerdirs of an overlay; with `ids`, idmapped to that user namespace.

        Linux 6.12 takes no detached mount as a lower, so all layers are attached at once, by the
        directory that holds them, until the overlay has a clone of each.
        """
        if ids is None:
            yield lower_layers
            return
        ids.lower_layers.mkdir(exist_ok=True, mode=0o700)
        userns = os.open(ids.userns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with idmap.idmapped(self.root, userns, readonly=True) as tree:
                idmap.attach(tree, ids.lower_layers)
        finally:
            os.close(userns)
        faults.reach("container-create:idmapped-layers")
        try:
            yield [ids.lower_layers / lower.relative_to(self.root) for lower in lower_layers]
        finally:
            mount.detach(ids.lower_layers)
        ids.lower_layers.rmdir()


_SCRATCH = ("mapped", "empty", "merged")


def _clear(scratch: Path) -> None:
    for name in ("merged", "mapped"):
        mount.detach(scratch / name)
        with contextlib.suppress(FileNotFoundError):
            (scratch / name).rmdir()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(scratch)


def _give(bundle: Path, layer: Sequence[Path], ids: MappedIds) -> None:
    """Let the namespace's root own the writable layer and pass through the bundle's directory."""
    os.chown(bundle, -1, ids.gid)
    bundle.chmod(0o710)
    for directory in layer:
        os.chown(directory, ids.uid, ids.gid)
