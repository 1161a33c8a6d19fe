# SPDX-License-Identifier: Apache-2.0
"""A file system or pool that is full, in every step; many layers and containers on one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from criagent.base import faults
from criagent.base.errors import AgentError, ExhaustedError
from criagent.model.image import Image
from tests.storage.ground import Storage, write_until_full
from tests.storage.grounds import SIZE
from tests.support.unpack_place import directory, listed, member, tar

pytestmark = pytest.mark.root

BASE = tar(directory("d"), member("d/low", b"low"), member("big", b"x" * 100_000))
MORE = tar(member("d/more", os.urandom(1 << 20)), member("d/.wh.low"))
MANY_LAYERS = int(os.environ.get("STORAGE_LAYERS", "300"))
MANY_CONTAINERS = int(os.environ.get("STORAGE_CONTAINERS", "200"))
ROOM = 1 << 30  # devmapper and zfs take space for each layer and each container
_FULL = {errno.ENOSPC, errno.EDQUOT}


def fits(file: Path, size: int) -> bool:
    """Whether a program can write so much to it, to the disk."""
    try:
        with file.open("wb") as opened:
            opened.write(os.urandom(size))
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        assert error.errno in _FULL, error
        return False
    return True


@asynccontextmanager
async def filled(storage: Storage, image: Image, free: int = 0) -> AsyncIterator[None]:
    """For the block containers have all the space but for about `free` bytes."""
    spare, hog = [await storage.writable(name, image) for name in ("spare---", "hog-----")]
    if free:
        async with storage.root(spare, image) as root:
            (root / "spare").write_bytes(os.urandom(free))
            os.sync()
    async with storage.root(hog, image) as root:
        write_until_full(root / "hog")
    await storage.snapshots.remove(spare.key)
    await storage.snapshots.empty_trash()
    try:
        yield
    finally:
        await storage.snapshots.remove(hog.key)
        await storage.snapshots.empty_trash()


@contextlib.contextmanager
def may_be_full() -> Iterator[None]:
    """The block may fail, but only for want of space and with words that say so."""
    try:
        yield
    except ExhaustedError as error:
        assert "no space left" in str(error) or "full" in str(error)
    except AgentError as error:
        assert "No space left" in str(error) or "quota exceeded" in str(error), error
    except OSError as error:
        assert error.errno in _FULL, error


async def remove_all(storage: Storage, keep: Image) -> None:
    """As after a failed pull and a failed creation."""
    kept = {layer.chain_id for layer in keep.layers}
    for row in reversed(storage.rows.all()):
        if row.key not in kept and not row.key.startswith("hog"):
            await storage.snapshots.remove(row.key)
    await storage.snapshots.empty_trash()


async def test_no_space_in_any_step(storage: Storage) -> None:
    image = await storage.image(BASE)
    kept = await storage.writable("k", image)
    async with storage.root(kept, image) as root:
        (root / "mine").write_bytes(b"mine")
        os.sync()
    async with filled(storage, image):
        before = storage.directories()
        with pytest.raises(ExhaustedError, match=r"no space left|full"):
            await storage.image(BASE, tar(member("more", os.urandom(4 << 20))))
        await storage.snapshots.empty_trash()
        assert storage.directories() == before
        with may_be_full():
            await storage.writable("new", image)
        await storage.snapshots.remove("new" * 21)
        with may_be_full():
            async with storage.root(kept, image) as root:
                assert (root / "mine").read_bytes() == b"mine"
                assert not fits(root / "yours", 4 << 20)
        await storage.reopen()
        async with storage.volume(image) as volume:
            assert (volume / "d/low").read_bytes() == b"low"
        await storage.snapshots.remove(kept.key)
        await storage.snapshots.empty_trash()
        assert len(storage.directories()) == 2
    async with storage.root(await storage.writable("b", image), image) as root:
        assert fits(root / "half", SIZE // 2)  # the space is free again
    assert await storage.problems() == [""]


@pytest.mark.long
async def test_little_space_left(storage: Storage) -> None:
    """Full at the first step that needs more, whichever it is."""
    image = await storage.image(BASE)
    for free in (1 << 14, 1 << 17, 1 << 19, 3 << 19, 5 << 19, 1 << 23):
        async with filled(storage, image, free):
            before = storage.directories()
            with may_be_full():
                above = await storage.image(BASE, MORE)
                snapshot = await storage.writable("b", above)
                async with storage.root(snapshot, above) as root:
                    (root / "big").write_bytes(os.urandom(1 << 20))
            for other in storage.images.all():
                if other.id != image.id:
                    await storage.images.delete(other.id)
            await remove_all(storage, image)
            assert storage.directories() == before
            assert await storage.problems() == [""]
    assert (await storage.image(BASE, MORE)).layers[0] == image.layers[0]


@pytest.mark.long
async def test_no_space_at_any_point(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each crash point fails once with ENOSPC; what it leaves can be removed, and all goes on."""

    async def life() -> None:
        above = await storage.image(BASE, MORE)
        snapshot = await storage.writable("b", above)
        async with storage.root(snapshot, above) as root:
            (root / "d/new").write_bytes(b"new")
        await storage.snapshots.remove(snapshot.key)
        await remove()

    async def remove() -> None:
        for image in storage.images.all():
            await storage.images.delete(image.id)
        for row in reversed(storage.rows.all()):
            await storage.snapshots.remove(row.key)
        await storage.snapshots.empty_trash()

    async def clear() -> None:
        """What stayed in the trash, because its deletion failed, goes too."""
        await remove()
        assert storage.directories() == []

    points: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(faults, "reach", points.append)
        await life()
        assert storage.directories() == []
    for point in dict.fromkeys(points):
        faults.arm(None, [f"{point}=ENOSPC"])
        with may_be_full():
            await life()
        faults.arm(None)
        await storage.snapshots.unmount(storage.mounts / ("b" * 8) / "rootfs")
        await clear()
    await life()
    assert storage.directories() == []


@pytest.mark.long
@pytest.mark.room(ROOM)
async def test_three_hundred_layers(storage: Storage) -> None:
    tars = [
        tar(member(f"file{n}", b"%d" % n), member(f".wh.file{n - 1}")) for n in range(MANY_LAYERS)
    ]
    image = await storage.image(*tars)
    async with storage.root(await storage.writable("a", image), image) as root:
        assert listed(root) == {f"file{MANY_LAYERS - 1}": str(MANY_LAYERS - 1)}
    async with storage.volume(image) as volume:
        assert len(list(volume.iterdir())) == 1


@pytest.mark.long
@pytest.mark.room(ROOM)
async def test_two_hundred_containers_at_once(storage: Storage) -> None:
    image = await storage.image(BASE)

    async def one(number: int) -> None:
        name = f"{number:08x}"
        snapshot = await storage.writable(name, image)
        async with storage.root(snapshot, image) as root:
            await asyncio.sleep(0)
            (root / "d/own").write_text(name)
            assert listed(root / "d") == {"low": "low", "own": name}

    await asyncio.gather(*map(one, range(MANY_CONTAINERS)))
    assert len(storage.directories()) == MANY_CONTAINERS + 1
    keys = [row.key for row in storage.rows.all() if not row.committed]
    await asyncio.gather(*map(storage.snapshots.remove, keys))
    await storage.snapshots.empty_trash()
    assert len(storage.directories()) == 1
