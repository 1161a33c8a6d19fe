# SPDX-License-Identifier: Apache-2.0
"""Mounts of images of layers: from their files where the kernel can (6.12), else by loop devices.

Found out once, with a small image of our own on the file system of the layers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

from criagent.base.aio import run_in
from criagent.base.errors import UnsupportedError
from criagent.image.snapshots.driver import MappedIds
from criagent.kernel import idmap, mount
from criagent.process.child import Options, run

_MOUNT_LIMIT_S = 60.0
_DIRECT = "directio"  # Linux 6.13: what is read is not cached in the image's own page cache too


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to mount an image: by a loop device, or from its file with these flags."""

    loop: bool = False
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "loop devices" if self.loop else " ".join(("files", *self.flags))


_FILE_WAYS = (Way(flags=(_DIRECT,)), Way())
_LOOP_WAYS = (Way(loop=True),)
WAYS = {"auto": (*_FILE_WAYS, *_LOOP_WAYS), "file": _FILE_WAYS, "loop": _LOOP_WAYS}


async def attach(image: Path, target: Path, way: Way, fs: Executor) -> None:
    """Mount `image` at the directory `target`. Raises OSError."""
    if not way.loop:
        await run_in(fs, mount.image, "erofs", image, target, way.flags)
        return
    argv: list[str | Path] = ["mount", "-t", "erofs", "-o", "loop,ro,nosuid,nodev", image, target]
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    ended = await run(argv, limit_s=_MOUNT_LIMIT_S, keep=4096, options=Options(env=env))
    if ended.status:
        raise OSError(errno.EIO, " ".join(ended.errors.split())[:300], str(image))


async def chosen(backing: str, image: Path, place: Path, fs: Executor) -> Way:
    """The first way to mount `image` that also works below an overlay, tried at `place`.

    `place` has the directories `mnt`, `empty` and `merged`. Raises UnsupportedError.
    """
    problems: list[str] = []
    for way in WAYS[backing]:
        try:
            await attach(image, place / "mnt", way, fs)
            layers = [place / "mnt", place / "empty"]
            await run_in(fs, mount.overlay, layers, None, None, place / "merged")
            return way
        except OSError as exc:
            if exc.errno == errno.ENODEV and not way.loop:
                raise UnsupportedError(
                    "the kernel does not have erofs; run `modprobe erofs`, or use a kernel with "
                    "CONFIG_EROFS_FS"
                ) from exc
            problems.append(f"by {way}: {exc.strerror}")
        finally:
            await run_in(fs, detach_all, place)
    raise UnsupportedError(
        f'an image of erofs cannot be mounted with storage.erofs.backing = "{backing}": '
        + "; ".join(problems)
    )


def detach_all(place: Path) -> None:
    """Unmount what `chosen` mounts at `place`; idempotent."""
    for name in ("merged", "mnt"):
        mount.detach(place / name)


def is_attached(target: Path) -> bool:
    """Whether something is mounted at the directory `target`."""
    return os.stat(target).st_dev != os.stat(target.parent).st_dev


@contextlib.contextmanager
def seen_as(layers: Sequence[Path], ids: MappedIds | None) -> Iterator[Sequence[Path]]:
    """The mounted `layers` as lowerdirs of an overlay; with `ids`, idmapped to them.

    They are attached below a file system of their own, so that one unmount takes all away, until
    the overlay has a clone of each.
    """
    if ids is None:
        yield layers
        return
    top = ids.lower_layers
    mount.detach(top)
    top.mkdir(exist_ok=True, parents=True, mode=0o700)
    mount.mount("tmpfs", top, "tmpfs", mount.MS_NOSUID | mount.MS_NODEV, "mode=700")
    try:
        mount.make_private(top)
        yield [_mapped(layer, top / str(at), ids.userns) for at, layer in enumerate(layers)]
    finally:
        mount.detach(top)
    top.rmdir()


def _mapped(layer: Path, target: Path, userns: Path) -> Path:
    target.mkdir()
    pin = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with idmap.idmapped(layer, pin, readonly=True) as tree:
            idmap.attach(tree, target)
    finally:
        os.close(pin)
    return target
