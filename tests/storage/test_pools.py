# SPDX-License-Identifier: Apache-2.0
"""Stores of their own that fill, fail, vanish or belong to another: devmapper and zfs.

They run where the kernel has them: `make vm-test`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from criagent.base.errors import AgentError, ExhaustedError, UnsupportedError
from criagent.config.storage_section import Storage as StorageSection
from criagent.config.storage_section import StorageDevmapper
from criagent.image.snapshots.drivers.devmapper.driver import DevmapperDriver
from criagent.image.snapshots.drivers.devmapper.pool import pool_name
from criagent.kernel import devicemapper as dm
from criagent.kernel import mount
from tests.storage.ground import Storage
from tests.storage.grounds import absent, file_system
from tests.storage.pools import SIZE, ZFS, run
from tests.support.unpack_place import member, tar

pytestmark = pytest.mark.root

BASE = tar(member("file", b"content"), member("big", b"x" * 100_000))
DATASET = ZFS.zfs.dataset


@pytest.fixture
async def thin(tmp_path: Path) -> AsyncIterator[Storage]:
    """An agent's storage on a thin pool."""
    if reason := absent("devmapper"):
        pytest.skip(reason)
    with file_system(tmp_path / "disk", "devmapper") as top:
        one = await Storage(top, "devmapper", tmp_path).open()
        yield one
        await one.close()


def write_synced(file: Path, megabytes: int) -> None:
    """Write that much, each megabyte as far as the disk."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT)
    try:
        for _ in range(megabytes):
            os.write(fd, os.urandom(1 << 20))
            os.fsync(fd)
    finally:
        os.close(fd)


def pool_of(storage: Storage) -> str:
    return pool_name(storage.snapshots.root)


def data_blocks(storage: Storage) -> int:
    driver = storage.driver
    assert isinstance(driver, DevmapperDriver)
    status = driver.pool.status()
    assert status is not None
    return status.used_data


async def test_a_pool_that_runs_full_refuses_and_recovers(thin: Storage) -> None:
    image = await thin.image(BASE)
    assert await thin.snapshots.health() == ""
    hog = await thin.writable("a", image)
    async with thin.root(hog, image) as root:
        with contextlib.suppress(OSError):
            write_synced(root / "hog", 2 * SIZE >> 20)
        assert thin.snapshots.used_shares()["data"] > 0.95
        told = await thin.snapshots.health()
        assert "full" in told
        assert "remove pods and images" in told
        with pytest.raises(ExhaustedError, match="no space left in the thin pool"):
            await thin.writable("b", image)
        await thin.snapshots.remove("b" * 64)
        with pytest.raises(ExhaustedError, match="no space left"):
            await thin.image(tar(member("more", os.urandom(8 << 20))))
    await thin.snapshots.remove(hog.key)
    await thin.snapshots.empty_trash()
    assert await thin.snapshots.health() == ""
    after = await thin.writable("c", image)
    async with thin.root(after, image) as root:
        (root / "written").write_bytes(b"x" * 1_000_000)
        os.sync()
        assert (root / "big").stat().st_size == 100_000
    assert await thin.problems() == [""]


async def test_a_file_of_a_pool_shrinks_when_volumes_are_deleted(thin: Storage) -> None:
    image = await thin.image(BASE)
    data = thin.snapshots.root / "loop/data"
    before = data.stat().st_blocks * 512
    hog = await thin.writable("a", image)
    async with thin.root(hog, image) as root:
        (root / "hog").write_bytes(os.urandom(20 << 20))
        os.sync()
        assert data.stat().st_blocks * 512 - before > 15 << 20
    await thin.snapshots.remove(hog.key)
    await thin.snapshots.empty_trash()
    assert data.stat().st_blocks * 512 - before < 4 << 20


async def test_a_deactivated_pool_is_told_and_active_after_a_restart(thin: Storage) -> None:
    """As after `dmsetup remove` or a reboot, in which the loop devices go as well."""
    image = await thin.image(BASE)
    snapshot = await thin.writable("a", image)
    run("dmsetup", "remove", pool_of(thin))
    assert "is not active" in await thin.snapshots.health()
    assert thin.snapshots.used_shares() == {}
    with pytest.raises(AgentError, match="restart criagent"):
        await thin.writable("b", image)
    with pytest.raises(AgentError, match="is not active; restart criagent"):
        await thin.problems()  # which a repair would delete
    await thin.snapshots.remove("b" * 64)
    for file in (thin.snapshots.root / "loop").iterdir():
        run("losetup", "-d", run("losetup", "-n", "-O", "NAME", "-j", file).strip())
    await thin.reopen()
    assert await thin.snapshots.health() == ""
    async with thin.root(snapshot, image) as root:
        assert (root / "file").read_text() == "content"
    assert await thin.problems() == [""]


async def test_damaged_metadata_are_refused_with_the_cure(thin: Storage) -> None:
    await thin.image(BASE)
    await thin.close()
    run("dmsetup", "remove", pool_of(thin))
    with (thin.snapshots.root / "loop/metadata").open("r+b") as file:
        good = file.read(1 << 20)
        file.seek(4096)
        file.write(os.urandom((1 << 20) - 4096))
    with pytest.raises(AgentError, match="thin_repair"):
        await thin.open()
    with (thin.snapshots.root / "loop/metadata").open("r+b") as file:
        file.write(good)
    await thin.open()
    assert await thin.problems() == [""]


async def test_a_loop_file_that_vanished_is_told(thin: Storage) -> None:
    await thin.image(BASE)
    data = thin.snapshots.root / "loop/data"
    data.rename(thin.top / "away")
    assert f"{data} of the thin pool is gone" in await thin.snapshots.health()
    await thin.close()
    with pytest.raises(UnsupportedError, match="is gone, and the layers with it; restore it"):
        await thin.open()
    (thin.top / "away").rename(data)
    await thin.open()
    assert await thin.problems() == [""]


async def test_two_agents_on_one_pool_are_refused(thin: Storage, tmp_path: Path) -> None:
    """The second one has a root directory of its own, or a copy of the first one's."""
    await thin.image(BASE)
    metadata, data = (
        run("losetup", "-n", "-O", "NAME", "-j", thin.snapshots.root / f"loop/{name}").strip()
        for name in ("metadata", "data")
    )
    given = StorageDevmapper(data_device=data, metadata_device=metadata)
    by_name = StorageDevmapper(pool=pool_of(thin))
    top, state = thin.top / "other", tmp_path / "other"
    top.mkdir()
    state.mkdir()
    others = [
        Storage(top, "devmapper", state, StorageSection(devmapper=settings))
        for settings in (given, by_name)
    ]
    for other, told in zip(others, ("in use", "another agent uses the thin pool"), strict=True):
        with pytest.raises(UnsupportedError, match=told):
            await other.open()
    await thin.close()
    with pytest.raises(UnsupportedError, match="does not belong to"):
        await others[1].open()
    await thin.open()
    assert await thin.problems() == [""]


async def test_a_pool_grows_with_its_file(thin: Storage, tmp_path: Path) -> None:
    image = await thin.image(BASE)
    await thin.close()
    larger = StorageDevmapper(loop_size_bytes=2 * SIZE, base_size_bytes=4 * SIZE)
    again = Storage(thin.top, "devmapper", tmp_path, StorageSection(devmapper=larger))
    await again.open()
    (target,) = dm.status(pool_of(again), table=True)
    assert target.length * 512 == 2 * SIZE
    async with again.root(await again.writable("a", image), image) as root:
        assert (root / "file").read_text() == "content"
    await again.close()
    await thin.open()  # a smaller size changes nothing
    assert dm.status(pool_of(thin), table=True)[0].length * 512 == 2 * SIZE


@pytest.mark.parametrize("limit", [8 << 20, 6 * SIZE])
@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
async def test_a_limit_is_what_a_container_can_write(
    tmp_path: Path, filesystem: str, limit: int
) -> None:
    """Below and above what the base volume has free."""
    if reason := absent("devmapper"):
        pytest.skip(reason)
    settings = StorageDevmapper(
        loop_size_bytes=8 * SIZE,
        base_size_bytes=5 * SIZE,
        filesystem=filesystem,  # type: ignore[arg-type]
    )
    with file_system(tmp_path / "disk", "devmapper", size=6 * SIZE) as top:
        storage = Storage(top, "devmapper", tmp_path, StorageSection(devmapper=settings))
        await storage.open()
        image = await storage.image(BASE)
        snapshot = await storage.snapshots.create_container(
            "a" * 64, parent=image.layers[-1].chain_id, created_at_ns=1, limit_bytes=limit
        )
        async with storage.root(snapshot, image) as root:
            with (root / "sized").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, limit * 9 // 10)
                with pytest.raises(OSError, match="No space"):
                    os.posix_fallocate(file.fileno(), 0, limit * 11 // 10)
        await storage.close()


async def test_nothing_of_a_volume_is_left_when_its_user_unmounts(thin: Storage) -> None:
    image = await thin.image(BASE)
    snapshot = await thin.writable("a", image)
    before = set(dm.names())
    async with thin.root(snapshot, image), thin.volume(image):
        assert len(set(dm.names()) - before) == 2
    await thin.snapshots.remove(snapshot.key)
    await thin.snapshots.empty_trash()
    assert set(dm.names()) == before


async def test_orphans_in_a_pool_are_swept(thin: Storage) -> None:
    """A database that is older than the pool, and a directory that a power failure took."""
    image = await thin.image(BASE)
    snapshot = await thin.writable("a", image)
    blocks = data_blocks(thin)
    dm.message(pool_of(thin), "create_thin 4711")
    await thin.writable("b", image)
    await thin.rows.delete("b" * 64)
    await thin.reopen()
    driver = thin.driver
    assert isinstance(driver, DevmapperDriver)
    layer = thin.rows.get(image.layers[0].chain_id)
    assert layer is not None
    assert sorted(await driver.thin.ids_in_pool()) == [0, layer.number, snapshot.number]
    assert data_blocks(thin) <= blocks


@pytest.fixture
async def zfs(tmp_path: Path) -> AsyncIterator[Storage]:
    """An agent's storage on a dataset."""
    if reason := absent("zfs"):
        pytest.skip(reason)
    with file_system(tmp_path / "disk", "zfs") as top:
        one = await Storage(top, "zfs", tmp_path).open()
        yield one
        await one.close()


async def test_a_dataset_that_was_destroyed_is_found(zfs: Storage) -> None:
    image = await zfs.image(BASE)
    layer = zfs.rows.get(image.layers[0].chain_id)
    assert layer is not None
    run("zfs", "destroy", "-r", f"{DATASET}/{layer.number}")
    (problem,) = await zfs.problems()
    assert "does not exist" in problem
    with pytest.raises(AgentError, match=r"does not exist.*fsck --repair"):
        await zfs.writable("a", image)
    await zfs.snapshots.remove("a" * 64)
    await zfs.snapshots.remove(layer.key)
    await zfs.snapshots.empty_trash()
    assert zfs.directories() == []
    await zfs.images.delete(image.id)
    await zfs.image(BASE)
    assert await zfs.problems() == [""]


async def test_two_agents_on_one_dataset_are_refused(zfs: Storage, tmp_path: Path) -> None:
    top, state = zfs.top / "other", tmp_path / "other"
    top.mkdir()
    state.mkdir()
    other = Storage(top, "zfs", state, ZFS)
    with pytest.raises(UnsupportedError, match="another agent uses the dataset"):
        await other.open()
    await zfs.close()
    with pytest.raises(UnsupportedError, match="does not belong to"):
        await other.open()
    await zfs.open()


async def test_a_limit_is_a_quota_beyond_the_image(zfs: Storage) -> None:
    image = await zfs.image(BASE)
    limited = await zfs.snapshots.create_container(
        "a" * 64, parent=image.layers[-1].chain_id, created_at_ns=1, limit_bytes=8 << 20
    )
    async with zfs.root(limited, image) as root:
        (root / "first").write_bytes(os.urandom(4 << 20))
        with pytest.raises(OSError, match="quota"):
            write_synced(root / "more", 32)


async def test_a_pool_that_is_exported_is_told(zfs: Storage) -> None:
    pool = DATASET.partition("/")[0]
    await zfs.image(BASE)
    mount.detach_below(zfs.snapshots.root)
    with pytest.raises(AgentError, match=r"is not mounted at .*; restart criagent"):
        await zfs.problems()  # which a repair would delete
    run("zpool", "export", pool)
    assert "is not imported" in await zfs.snapshots.health()
    with pytest.raises(AgentError, match="is not imported"):
        await zfs.problems()
    await zfs.close()
    with pytest.raises(AgentError, match=f"zpool import {pool}"):
        await zfs.open()
    run("zpool", "import", "-d", zfs.top, "-o", "cachefile=none", pool)
    await zfs.open()
    assert await zfs.problems() == [""]
