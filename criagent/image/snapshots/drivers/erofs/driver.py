# SPDX-License-Identifier: Apache-2.0
"""Snapshots as images of erofs: `snapshots/<number>/{image,image.json,mnt}` is a committed layer.

    fs (written by a worker, settled) ─commit─▶ image ─first use─▶ mounted at mnt, until it is trash

A layer is mounted once, on first use, for all containers: so they share one super block and its
page cache. It is unmounted when the layer is removed, or when the agent stops and no overlay names
it: overlays are unmounted without the driver. Containers have directories as with overlay.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from criagent.base import faults
from criagent.base.aio import run_in
from criagent.base.errors import CorruptError, UnsupportedError
from criagent.base.os_errors import of_the_agent
from criagent.config.storage_section import Storage
from criagent.image.blobs import disk_full
from criagent.image.snapshots.driver import (
    Capabilities,
    LayerPlace,
    MappedIds,
    MountPoint,
    Taken,
)
from criagent.image.snapshots.drivers.directories import let_through
from criagent.image.snapshots.drivers.erofs import image_file
from criagent.image.snapshots.drivers.erofs.attach import (
    Way,
    attach,
    chosen,
    detach_all,
    is_attached,
    seen_as,
)
from criagent.image.snapshots.drivers.erofs.image_file import IMAGE, PART
from criagent.image.snapshots.drivers.limited import LimitedDirectoryDriver
from criagent.kernel import mount
from criagent.kernel.trees import remove_tree
from criagent.model.image import Snapshot

_TRIAL = b"criagent\n" * 1000  # compressible, so that the kernel has to know the algorithm


class ErofsDriver(LimitedDirectoryDriver):
    """Images below `root`, mounted with erofs and joined with overlayfs."""

    name: Final = "erofs"
    capabilities = Capabilities(
        settles=True,
        selinux_labels=True,
        shared_page_cache=True,
        separate_containers=True,
        upper_directories=True,
    )

    def __init__(self, root: Path, section: Storage, fs: Executor) -> None:
        super().__init__(root, section, fs)
        self._keys = section.erofs
        self._verified = section.erofs.verity == "fs-verity"
        self._way = Way()
        self._version = ""
        self._attaching = asyncio.Lock()  # a layer is mounted once
        self._written: Counter[int] = Counter()  # users of the trees of layers

    async def prepare(self) -> None:
        """Make the fixed directories, and find out how images are mounted, with a small one."""
        await super().prepare()
        await run_in(self._fs, mount.share, self.root)
        self._version = await image_file.version()
        trial = self.root / "trial"
        await run_in(self._fs, self._prepare_trial, trial)
        image = trial / IMAGE
        compression = [f"-z{self._keys.compression}"] if self._keys.compression else []
        await image_file.make(trial / "fs", image, compression)
        if self._verified:
            await run_in(self._fs, self._try_verity, image)
        self._way = await chosen(self._keys.backing, image, trial, self._fs)

    async def close(self) -> None:
        """Unmount the layers that no overlay names, so that their disk can be unmounted."""
        await run_in(self._fs, self._detach_unused)

    def _detach_unused(self) -> None:
        """An overlay with mapped ids names other paths: it keeps its clones of the mounts."""
        table = mount.mountinfo()
        used = {
            path
            for entry in table
            if entry.fstype == "overlay"
            for option in entry.super_options
            if option.startswith("lowerdir")
            for path in option.partition("=")[2].split(":")
        }
        for entry in table:
            place = Path(entry.target)
            own = place.name == "mnt" and place.parent.parent == self.root
            if own and entry.fstype == "erofs" and entry.target not in used:
                mount.detach(place)

    def _prepare_trial(self, trial: Path) -> None:
        detach_all(trial)  # a start was killed
        with disk_full(self.root):
            for name in ("fs", "mnt", "empty", "merged"):
                (trial / name).mkdir(parents=True, exist_ok=True)
            (trial / "fs/file").write_bytes(_TRIAL)

    def _try_verity(self, image: Path) -> None:
        try:
            image_file.finish(image, with_verity=True)
        except OSError as exc:
            raise UnsupportedError(
                f'storage.erofs.verity = "fs-verity": the file system of {self.root} does not '
                f"support it: {exc.strerror}; enable it (tune2fs -O verity DEVICE of ext4), put "
                'storage.root on btrfs, or set storage.erofs.verity = "off"'
            ) from exc

    async def facts(self) -> Mapping[str, str]:
        """How layers are stored and mounted."""
        return {
            **await super().facts(),
            "erofs-utils": self._version,
            "layers mounted from": str(self._way),
            "compression of new layers": self._keys.compression or "none",
            "verity": self._keys.verity,
        }

    async def userns_problem(self, ids: MappedIds) -> str:
        """Try an overlay of the small image with mapped ids."""
        trial = self.root / "trial"
        try:
            await attach(trial / IMAGE, trial / "mnt", self._way, self._fs)
            return await run_in(self._fs, self._userns_problem, trial, ids)
        except OSError as exc:
            return f"an overlay of an erofs image with mapped ids cannot be mounted: {exc}"
        finally:
            await run_in(self._fs, detach_all, trial)

    def _userns_problem(self, trial: Path, ids: MappedIds) -> str:
        merged = trial / "merged"
        with seen_as([trial / "mnt"], ids) as seen:
            mount.overlay([*seen, self._fillers[0]], None, None, merged)
        if (merged / "file").stat().st_uid != ids.uid:
            return "overlay of this kernel does not support layers with mapped ids"
        return ""

    # Layers.

    async def create_layer(self, number: int, parent: int | None) -> None:
        """Empty directories: layers are joined when they are mounted."""
        await run_in(self._fs, self._make, number)

    @asynccontextmanager
    async def layer_place(
        self, number: int, below: Sequence[int] | None
    ) -> AsyncIterator[LayerPlace]:
        """The layer's tree. Those below are trees too, or mounted once they are images.

        A tree that is used here stays until the block ends, whoever commits it meanwhile.
        """
        used = [number, *(below or ())]
        self._written.update(used)
        try:
            yield LayerPlace(
                root=self._tree(number),
                scratch=self._path(number),
                lower_layers=None if below is None else tuple(await self._attached(below)),
            )
        finally:
            self._written.subtract(used)
            for one in used:
                await self._drop_tree(one)

    async def commit_layer(self, number: int) -> Taken | None:
        """Make the image of the layer's tree, and drop the tree."""
        directory = self._path(number)
        image, part = directory / IMAGE, directory / PART
        if not image.exists():
            layout = await run_in(
                self._fs, image_file.layout, self._tree(number), self._keys.compression
            )
            await image_file.make(self._tree(number), part, layout)
            faults.reach("erofs:image-made")
            await run_in(self._fs, self._finish, directory)
        await self._drop_tree(number)
        return Taken(used_bytes=image.stat().st_blocks * 512, inodes=2)

    def _finish(self, directory: Path) -> None:
        with disk_full(self.root):
            description = image_file.finish(directory / PART, with_verity=self._verified)
            image_file.describe(directory, description)
            faults.reach("erofs:image-described")
            (directory / PART).rename(directory / IMAGE)
            _sync(directory)
            faults.reach("erofs:image-renamed")

    async def _drop_tree(self, number: int) -> None:
        """Remove the tree of a layer that has its image, unless a worker uses it."""
        if self._written[number] <= 0:
            del self._written[number]
            await run_in(self._fs, self._remove_tree, number)

    def _remove_tree(self, number: int) -> None:
        if (self._path(number) / IMAGE).exists():
            remove_tree(self._tree(number))

    @asynccontextmanager
    async def layer_tree(self, number: int) -> AsyncIterator[Path | None]:
        """None: what is kept is the image."""
        yield None

    async def problem(self, layer: Snapshot) -> str:
        """Compare the image with its description."""
        directory = self._path(layer.number)
        if not directory.exists():
            return "the layer's directory is missing"

        def found() -> str:
            return image_file.problem(directory, with_verity=self._verified)

        return await run_in(self._fs, found)

    # Mounts.

    async def create_container(self, number: int, parent: int | None, limit_bytes: int) -> None:
        """Empty directories as well."""
        await run_in(self._fs, self._make_upper, number, limit_bytes)

    def _make_upper(self, number: int, limit_bytes: int) -> None:
        self._make_container(number, limit_bytes, "work")
        self._limit(number, limit_bytes)

    async def mount_container(self, number: int, below: Sequence[int], at: MountPoint) -> None:
        """An overlay with the container's upper directory, which its root then owns."""
        layers = await self._attached(below)
        await run_in(self._fs, self._mount_container, number, layers, at)

    def _mount_container(self, number: int, layers: Sequence[Path], at: MountPoint) -> None:
        at.path.parent.mkdir(exist_ok=True, mode=0o700)
        at.path.mkdir(exist_ok=True)
        upper, work = self._upper(number), self._container(number) / "work"
        if at.ids is not None:
            let_through(at.path.parent, at.ids)
            for directory in (upper, work):
                os.chown(directory, at.ids.uid, at.ids.gid)
        with seen_as(layers, at.ids) as seen:
            mount.overlay(
                [*seen] or [self._fillers[0]],
                upper,
                work,
                at.path,
                mount.OverlayOptions(label=at.label),
            )

    async def mount_image(self, layers: Sequence[int], at: MountPoint) -> None:
        """An overlay without an upper directory."""
        attached = await self._attached(layers)
        await run_in(self._fs, self._mount_image, attached, at)

    def _mount_image(self, layers: Sequence[Path], at: MountPoint) -> None:
        missing = max(0, 2 - len(layers))  # overlayfs wants two without an upper
        at.path.mkdir(parents=True, exist_ok=True)
        with seen_as(layers, at.ids) as seen:
            mount.overlay(
                [*seen, *self._fillers[:missing]],
                None,
                None,
                at.path,
                mount.OverlayOptions(label=at.label),
            )

    async def _attached(self, numbers: Sequence[int]) -> list[Path]:
        """Where the files of these layers are; images that are not mounted are by now."""
        found = await run_in(self._fs, self._files, numbers)
        if None not in found:
            return [place for place in found if place is not None]
        async with self._attaching:
            for number in numbers:
                (place,) = await run_in(self._fs, self._files, [number])
                if place is None:
                    await self._attach(number)
        return await self._attached(numbers)

    def _files(self, numbers: Sequence[int]) -> list[Path | None]:
        """Of each layer the directory of its files, None for one that has to be mounted."""
        found: list[Path | None] = []
        for number in numbers:
            mounted = self._path(number) / "mnt"
            if not (self._path(number) / IMAGE).exists() and self._tree(number).exists():
                found.append(self._tree(number))
            else:
                found.append(mounted if is_attached(mounted) else None)
        return found

    async def _attach(self, number: int) -> None:
        directory = self._path(number)
        if self._verified and (why := await run_in(self._fs, self._verity_problem, directory)):
            raise _damaged(number, why)
        try:
            await attach(directory / IMAGE, directory / "mnt", self._way, self._fs)
        except OSError as exc:
            raise _damaged(
                number, f"{directory / IMAGE} cannot be mounted: {exc.strerror}"
            ) from exc
        faults.reach("erofs:layer-mounted")

    def _verity_problem(self, directory: Path) -> str:
        try:
            with open(directory / IMAGE, "rb") as file:
                return image_file.verity_problem(
                    file.fileno(), image_file.described(directory), with_verity=True
                )
        except (OSError, ValueError) as exc:
            if isinstance(exc, OSError) and of_the_agent(exc):
                raise
            return f"its image or the description of it cannot be read: {exc}"

    # Removal.

    def _make(self, number: int) -> None:
        with disk_full(self.root):
            tree = self._tree(number)
            tree.mkdir(parents=True, mode=0o755)
            tree.chmod(0o755)  # the umask does not apply: this is the image's "/"
            (self._path(number) / "mnt").mkdir()

    def _trash_one(self, number: int) -> None:
        """Overlays have clones of the mount, which keep the image alive while they live."""
        mount.detach(self._path(number) / "mnt")
        faults.reach("erofs:layer-unmounted")
        super()._trash_one(number)

    def _sweep(self, known: frozenset[int]) -> None:
        """What a commit left that was killed goes too."""
        super()._sweep(known)
        for number in known:
            with contextlib.suppress(FileNotFoundError):
                self._remove_tree(number)
            (self._path(number) / PART).unlink(missing_ok=True)


def _damaged(number: int, why: str) -> CorruptError:
    return CorruptError(
        f"layer {number}: {why}; run `criagent image fsck --repair`, then pull the image again"
    )


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
