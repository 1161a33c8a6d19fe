# SPDX-License-Identifier: Apache-2.0
"""Stores of their own that fill, fail, vanish or belong to another: devmapper and zfs.

They run where the kernel has them: `make vm-test`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from criagent.base import faults
from criagent.base.errors import AgentError, ExhaustedError, UnsupportedError
from criagent.config.storage_section import Storage as StorageSection
from criagent.config.storage_section import StorageDevmapper
from criagent.image.snapshots.drivers.devmapper.driver import DevmapperDriver
from criagent.image.snapshots.drivers.devmapper.pool import pool_name
from criagent.kernel import devicemapper as dm
from tests.storage.ground import Storage, file_system
from tests.storage.stores import SIZE, absent, run
from tests.support.unpack_place import member, tar

pytestmark = pytest.mark.root

BASE = tar(member("file", b"content"), member("big", b"x" * 100_000))
THIN = StorageSection(devmapper=StorageDevmapper(loop_size_bytes=SIZE, base_size_bytes=4 * SIZE))
DRIVERS = Path(__file__).parents[2] / "criagent/image/snapshots/drivers"


def points(name: str) -> list[str]:
    """The points at which the driver `name` may die."""
    found = DRIVERS.rglob("*.py")
    texts = [path.read_text() for path in found if name in str(path.relative_to(DRIVERS))]
    return sorted(set(re.findall(r'faults\.reach\("([^"]+)"\)', "".join(texts))))


@pytest.fixture
async def thin(tmp_path: Path) -> AsyncIterator[Storage]:
    """An agent's storage on a thin pool."""
    if reason := absent("devmapper"):
        pytest.skip(reason)
    with file_system(tmp_path / "disk", "devmapper") as top:
        one = await Storage(top, "devmapper", tmp_path).open()
        yield one
        await one.close()


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
            fd = os.open(root / "hog", os.O_WRONLY | os.O_CREAT)
            try:
                for _ in range(2 * SIZE >> 20):
                    os.write(fd, os.urandom(1 << 20))
                    os.fsync(fd)
            finally:
                os.close(fd)
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
    await thin.snapshots.remove("b" * 64)
    for file in (thin.snapshots.root / "loop").iterdir():
        run("losetup", "-d", run("losetup", "-n", "-O", "NAME", "-j", file).strip())
    await thin.reopen()
    assert await thin.snapshots.health() == ""
    async with thin.root(snapshot, image) as root:
        assert (root / "file").read_text() == "content"
    assert await thin.problems() == [""]


async def test_a_pool_that_needs_a_check_gets_it_at_the_start(thin: Storage) -> None:
    """The kernel sets the flag when metadata could not be written."""
    image = await thin.image(BASE)
    pool = pool_of(thin)
    metadata = Path("/dev/block") / dm.status(pool, table=True)[0].arguments.split()[0]
    await thin.close()
    run("dmsetup", "remove", pool)
    # As a kernel leaves it that could not write: flags of the super block, thin_metadata's format.
    dump = run("thin_dump", metadata)
    (thin.top / "dump.xml").write_text(dump.replace("<superblock ", '<superblock flags="1" ', 1))
    await thin.open()
    assert await thin.snapshots.health() == ""
    async with thin.root(await thin.writable("a", image), image) as root:
        assert (root / "file").read_text() == "content"


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
    await thin.release()
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
    await thin.release()
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
    for number, (settings, told) in enumerate(
        ((given, "is in use"), (by_name, "another agent uses the thin pool"))
    ):
        top, state = thin.top / f"other-{number}", tmp_path / f"other-{number}"
        top.mkdir()
        state.mkdir()
        other = Storage(top, "devmapper", state, StorageSection(devmapper=settings))
        with pytest.raises(UnsupportedError, match=told):
            await other.open()
        await other.release()
    await thin.close()
    other = Storage(top, "devmapper", state, StorageSection(devmapper=by_name))
    with pytest.raises(UnsupportedError, match="does not belong to"):
        await other.open()
    await other.release()
    await thin.open()
    assert await thin.problems() == [""]


async def test_a_pool_grows_with_its_file(thin: Storage) -> None:
    image = await thin.image(BASE)
    await thin.close()
    larger = StorageDevmapper(loop_size_bytes=2 * SIZE, base_size_bytes=4 * SIZE)
    again = Storage(thin.top, "devmapper", thin.state, StorageSection(devmapper=larger))
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
    with file_system(tmp_path / "disk", "devmapper") as top:
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
    run("zfs", "destroy", "-r", f"{zfs.section.zfs.dataset}/{layer.number}")
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
    other = Storage(top, "zfs", state, zfs.section)
    with pytest.raises(UnsupportedError, match="another agent uses the dataset"):
        await other.open()
    await other.release()
    await zfs.close()
    with pytest.raises(UnsupportedError, match="does not belong to"):
        await other.open()
    await other.release()
    await zfs.open()


async def test_a_limit_is_a_quota_beyond_the_image(zfs: Storage) -> None:
    image = await zfs.image(BASE)
    limited = await zfs.snapshots.create_container(
        "a" * 64, parent=image.layers[-1].chain_id, created_at_ns=1, limit_bytes=8 << 20
    )
    async with zfs.root(limited, image) as root:
        (root / "first").write_bytes(os.urandom(4 << 20))
        with pytest.raises(OSError, match="quota"):
            for number in range(8):
                (root / f"more-{number}").write_bytes(os.urandom(4 << 20))
                os.sync()


async def test_a_pool_that_is_exported_is_told(zfs: Storage) -> None:
    pool = zfs.section.zfs.dataset.partition("/")[0]
    await zfs.image(BASE)
    await zfs.close()
    run("umount", zfs.snapshots.root)
    run("zpool", "export", pool)
    assert "is not imported" in await zfs.snapshots.health()
    with pytest.raises(AgentError, match=f"zpool import {pool}"):
        await zfs.open()
    await zfs.release()
    run("zpool", "import", "-d", zfs.top, "-o", "cachefile=none", pool)
    await zfs.open()
    assert await zfs.problems() == [""]


@pytest.mark.parametrize("driver", ["devmapper", "zfs"])
async def test_a_failure_at_each_point_leaves_nothing(driver: str, tmp_path: Path) -> None:
    """As SIGKILL there: the agent starts again, sweeps, and does the same."""
    if reason := absent(driver):
        pytest.skip(reason)
    assert points(driver)
    for number, point in enumerate(points(driver)):
        state = tmp_path / str(number)
        state.mkdir()
        with file_system(state / "disk", driver) as top:
            storage = Storage(top, driver, state)
            with _armed(point):
                status = await _in_child(storage)
            assert status == -9, f"{point} is not reached"
            await storage.open()
            await storage.snapshots.sweep()
            image = await _life(storage)
            assert storage.directories() == [], point
            assert [row.key for row in storage.rows.all()] == [], (point, image)
            await storage.close()


@contextlib.contextmanager
def _armed(point: str) -> Iterator[None]:
    faults.arm(point)
    try:
        yield
    finally:
        faults.arm(None)


shutil.which("dmsetup")
