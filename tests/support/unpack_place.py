# SPDX-License-Identifier: Apache-2.0
"""Layers written by the real unpack worker, one over another, and what an overlay of them shows."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from criagent.image.snapshots.content_count import content_count
from criagent.image.snapshots.driver import LayerPlace
from criagent.image.unpack.workers import LayerFile, NeedsLowerLayers, Unpacked, UnpackWorkers
from criagent.kernel import mount

Member = tuple[tarfile.TarInfo, bytes]
SYMLINK, LINK, DIR, CHAR = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE
BLOCK, FIFO = tarfile.BLKTYPE, tarfile.FIFOTYPE


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **facts: object
) -> Member:
    """An entry of a layer with its content."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, len(content)
    for key, value in facts.items():
        setattr(entry, key, value)
    return entry, content


def directory(name: str, **facts: object) -> Member:
    """A directory's entry."""
    return member(name, kind=DIR, **{"mode": 0o755, **facts})  # type: ignore[arg-type]


def link(name: str, target: str) -> Member:
    """A symbolic link's entry."""
    return member(name, kind=SYMLINK, linkname=target)


def hard(name: str, target: str) -> Member:
    """A hard link's entry."""
    return member(name, kind=LINK, linkname=target)


def tar(*members: Member) -> bytes:
    """A layer of these entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry, content in members:
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class Place:
    """A directory to unpack into, with a file outside that nothing may touch."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.outside = top / "outside"
        self.outside.write_text("untouched")
        self.outside.chmod(0o600)
        self.count = 0
        self.workers = UnpackWorkers(1)

    async def unpack(
        self,
        plain: bytes,
        packed: bytes | None = None,
        lowers: list[Path] | None = None,
        **other: str,
    ) -> tuple[Path, Unpacked]:
        """One layer, alone or over `lowers`."""
        packed = gzip.compress(plain) if packed is None else packed
        layer, root = self._prepare(plain, packed, **other)
        return root, await self._extract(layer, layer_place(root, lowers))

    async def _extract(self, layer: LayerFile, place: LayerPlace) -> Unpacked:
        """Write a layer; what the worker says of its content is what a count finds."""
        done = await self.workers.extract(layer, place, lambda _: None)
        assert done.content in {None, content_count(place.root)}
        return done

    async def image(self, *layers: bytes, merged: bool = False) -> list[Path]:
        """The trees of an image's layers, the topmost first.

        As the agent does it: each layer alone, then settled with those below it. With `merged`
        all are written through those below them at once, which must show the same.
        """
        trees: list[Path] = []
        for plain in layers:
            trees.insert(0, await self._over(plain, trees, merged=merged))
        return trees

    async def _over(self, plain: bytes, trees: list[Path], *, merged: bool) -> Path:
        packed = gzip.compress(plain, 1)
        if trees and not merged:
            layer, root = self._prepare(plain, packed)
            try:
                done = await self._extract(layer, layer_place(root, None))
                if done.unsettled:
                    await self.workers.settle(layer_place(root, trees))
                return root
            except NeedsLowerLayers:
                pass
        layer, root = self._prepare(plain, packed)
        await self._extract(layer, layer_place(root, trees))
        return root

    def _prepare(self, plain: bytes, packed: bytes, **other: str) -> tuple[LayerFile, Path]:
        self.count += 1
        blob = self.top / f"blob{self.count}"
        blob.write_bytes(packed)
        root = self.top / f"layer{self.count}" / "fs"
        root.mkdir(parents=True)
        layer = LayerFile(
            blob=blob,
            digest=other.get("digest", "sha256:" + hashlib.sha256(packed).hexdigest()),
            diff_id=other.get("diff_id", "sha256:" + hashlib.sha256(plain).hexdigest()),
            path=other.get("path", ""),
        )
        return layer, root

    @contextmanager
    def view(self, trees: list[Path]) -> Iterator[Path]:
        """What a container sees of these trees."""
        target = self.top / "view"
        target.mkdir(exist_ok=True)
        (self.top / "empty").mkdir(exist_ok=True)
        mount.overlay([*trees, self.top / "empty"], None, None, target)
        try:
            yield target
        finally:
            mount.umount2(target)

    def is_untouched(self) -> bool:
        """Whether the file outside is as it was."""
        mode = stat.S_IMODE(self.outside.stat().st_mode)
        return (self.outside.read_text(), mode) == ("untouched", 0o600)


def layer_place(root: Path, lowers: list[Path] | None) -> LayerPlace:
    """`root` over `lowers`, topmost first, with the directory around it for the worker."""
    below = None if lowers is None else tuple(lowers)
    return LayerPlace(root=root, scratch=root.parent, lower_layers=below)


def listed(top: Path) -> dict[str, str]:
    """Each path below `top` as `ls` has it: "/" for a directory, "-> target", content, or type."""
    found = {}
    for base, directories, files in os.walk(top):
        for name in directories + files:
            path = Path(base, name)
            found[str(path.relative_to(top))] = _shown(path)
    return found


def _shown(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"-> {path.readlink()}"
    if stat.S_ISDIR(mode):
        return "/"
    if stat.S_ISREG(mode):
        return path.read_text()
    return stat.filemode(mode)[0]
