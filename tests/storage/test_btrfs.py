# SPDX-License-Identifier: Apache-2.0
"""What only the storage driver btrfs has: subvolumes, their limits, and how they go."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from criagent.base.errors import AgentError, ExhaustedError, UnsupportedError
from criagent.kernel import btrfs, btrfs_quota, mount
from criagent.model.image import Snapshot
from tests.storage.ground import Storage
from tests.storage.grounds import file_system
from tests.storage.killed import LAYERS, Lives, lives
from tests.support.unpack_place import member, tar

pytestmark = pytest.mark.root

BASE = tar(member("low", b"low"), member("big", os.urandom(2 << 20)))
SOURCE = Path(__file__).parents[2] / "criagent/image/snapshots/drivers/btrfs.py"
POINTS = sorted(set(re.findall(r'faults\.reach\("([^"]+)"\)', SOURCE.read_text())))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of btrfs."""
    with file_system(tmp_path / "disk", "btrfs") as top:
        yield top


@pytest.fixture(scope="module")
def living() -> Iterator[Lives]:
    with lives() as one:
        yield one


@pytest.fixture
async def storage(place: Path) -> AsyncIterator[Storage]:
    one = await Storage(place, "btrfs", place.parent).open()
    yield one
    await one.close()


def sh(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def tree_of(storage: Storage, snapshot: Snapshot) -> Path:
    """The files of a snapshot."""
    return storage.snapshots.root / str(snapshot.number) / "fs"


def subvolumes(top: Path) -> list[str]:
    """Paths of all subvolumes, as btrfs-progs list them."""
    command = ["btrfs", "subvolume", "list", str(top)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return sorted(line.split(" path ")[1] for line in done.stdout.splitlines())


def groups(top: Path) -> list[str]:
    """The quota groups of the driver, as btrfs-progs list them."""
    command = ["btrfs", "qgroup", "show", str(top)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line.split()[0] for line in done.stdout.splitlines() if "/" in line.split()[0]]
    return [group for group in found if not group.startswith("0/")]


def nest(directory: int, name: str) -> int:
    """Make a subvolume as a program in a container can: without btrfs-progs and capabilities."""
    btrfs.create(directory, name)
    fd = os.open(name, os.O_RDONLY, dir_fd=directory)
    file = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd)
    os.write(file, b"nested")
    os.close(file)
    return fd


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY)
    yield fd
    os.close(fd)


async def limited(storage: Storage, size: int) -> tuple[Snapshot, Path]:
    """A container with a limit, whose root stays mounted."""
    image = await storage.image(BASE)
    snapshot = await storage.snapshots.create_container(
        "a" * 64, parent=image.layers[-1].chain_id, created_at_ns=1, limit_bytes=size
    )
    return snapshot, tree_of(storage, snapshot)


async def test_layers_are_read_only_and_containers_are_not(storage: Storage) -> None:
    image = await storage.image(*LAYERS)
    for layer in storage.rows.all():
        with pytest.raises(OSError, match="Read-only file system"):
            (tree_of(storage, layer) / "new").touch()
    snapshot = await storage.writable("a", image)
    (tree_of(storage, snapshot) / "new").touch()
    assert subvolumes(storage.top) == [f"snapshots/{number}" for number in (1, 2, 3)]


async def test_a_snapshot_shares_the_blocks_of_its_image(storage: Storage) -> None:
    image = await storage.image(BASE)
    storage.top.joinpath("filler").touch()
    os.sync()
    before = os.statvfs(storage.top).f_bfree
    for letter in "abcdefghij":
        snapshot = await storage.writable(letter, image)
        with (tree_of(storage, snapshot) / "big").open("r+b") as file:
            file.write(b"one block")
    os.sync()
    facts = os.statvfs(storage.top)
    assert (before - facts.f_bfree) * facts.f_bsize < 10 * (128 << 10)


async def test_three_hundred_layers(storage: Storage) -> None:
    tars = [tar(member(f"file{n}", b"%d" % n)) for n in range(300)]
    image = await storage.image(*tars)
    async with storage.root(await storage.writable("a", image), image) as root:
        assert len(list(root.iterdir())) == 300
        assert (root / "file0").read_text() == "0"


async def test_two_hundred_containers_at_once(storage: Storage) -> None:
    image = await storage.image(tar(member("low", b"low")))
    top = image.layers[-1].chain_id
    keys = [f"{n:064x}" for n in range(200)]
    made = await asyncio.gather(
        *(storage.snapshots.create_container(k, parent=top, created_at_ns=1) for k in keys)
    )
    assert all((tree_of(storage, one) / "low").read_text() == "low" for one in made)
    await asyncio.gather(*(storage.snapshots.remove(key) for key in keys))
    await storage.snapshots.empty_trash()
    assert subvolumes(storage.top) == ["snapshots/1"]


async def test_subvolumes_that_a_container_made_are_removed_with_it(storage: Storage) -> None:
    image = await storage.image(BASE)
    snapshot = await storage.writable("a", image)
    volumes = storage.snapshots.volumes(snapshot)
    volumes.mkdir()
    with opened(tree_of(storage, snapshot).parent) as own, opened(volumes) as volume:
        async with storage.root(snapshot, image) as root:
            with opened(root) as fd:
                btrfs.snapshot(own, fd, "of-itself")
                made = [nest(fd, "closed"), nest(fd, "shut"), nest(volume, "volume")]
                made.append(nest(made[1], "inner"))
                for one in made:
                    btrfs.set_readonly(one, wanted=True)
                for n in range(100):  # deeper than a path can be long
                    made.append(nest(made[-1] if n else fd, "x" * 100))
                for one in made:
                    os.close(one)
    assert len(subvolumes(storage.top)) == 107
    await storage.snapshots.remove(snapshot.key)
    await storage.snapshots.empty_trash()
    assert (subvolumes(storage.top), storage.directories()) == (["snapshots/1"], ["1"])


async def test_the_space_of_what_was_removed_is_free_at_once(storage: Storage) -> None:
    def free() -> int:
        os.sync()
        facts = os.statvfs(storage.top)
        return facts.f_bfree * facts.f_bsize

    image = await storage.image(BASE)
    before = free()
    snapshot = await storage.writable("a", image)
    (tree_of(storage, snapshot) / "file").write_bytes(os.urandom(16 << 20))
    assert before - free() > 15 << 20
    await storage.snapshots.remove(snapshot.key)
    await storage.snapshots.empty_trash()
    facts = os.statvfs(storage.top)
    assert before - facts.f_bfree * facts.f_bsize < 1 << 20


async def test_usage_is_what_was_allocated(storage: Storage) -> None:
    """A changed block of a large file of the image is no more than that, a hole nothing."""
    image = await storage.image(BASE)
    snapshot = await storage.writable("a", image)
    tree = tree_of(storage, snapshot)

    def used() -> tuple[int, int]:
        os.sync()
        count = storage.snapshots.counted(snapshot, tree).count()
        assert count.advance(math.inf)
        count.close()
        return count.usage

    assert used() == (0, 0)
    with (tree / "big").open("r+b") as big:
        big.write(b"changed")
    os.chown(tree / "low", 5, 5)
    assert used() == (4096, 0)
    with (tree / "hole").open("wb") as file:
        file.truncate(1 << 30)
        file.write(bytes(8192))
    assert used() == (4096 + 8192, 1)
    (tree / "hole").unlink()
    (tree / "small").write_bytes(b"x" * 100)
    assert used() == (4096 + 100, 1)
    with opened(tree) as fd:
        own = nest(fd, "own")
        os.close(nest(own, "inner"))
        os.close(own)
    (tree / "own/file").write_bytes(os.urandom(1 << 20))
    assert used() == (4096 + 100 + (1 << 20) + len("nested"), 1 + 4)
    volumes = storage.snapshots.volumes(snapshot)
    volumes.mkdir()
    (volumes / "file").write_bytes(os.urandom(1 << 20))
    assert used()[1] == 1 + 4 + 1
    sh("btrfs", "subvolume", "delete", tree.parent / "fs/own/inner")
    assert used()[1] == 1 + 4 + 1 - 2
    await storage.snapshots.remove(snapshot.key)
    gone = storage.snapshots.counted(snapshot, tree).count()
    with pytest.raises(FileNotFoundError):
        gone.advance(math.inf)


async def test_many_changes_are_counted_in_slices(storage: Storage) -> None:
    image = await storage.image(BASE)
    snapshot = await storage.writable("a", image)
    for n in range(5000):
        (tree_of(storage, snapshot) / f"{n}").touch()
    os.sync()
    count, slices = storage.snapshots.counted(snapshot, Path()).count(), 1
    while not count.advance(0):
        slices += 1
    assert count.usage == (0, 5000)
    assert slices > 10
    assert count.complete


async def test_a_limit_holds_for_all_that_a_container_writes(storage: Storage) -> None:
    """Its root, its declared volumes, and subvolumes that it makes."""
    snapshot, tree = await limited(storage, 8 << 20)
    volumes = storage.snapshots.volumes(snapshot)
    volumes.mkdir()
    (volumes / "file").write_bytes(os.urandom(3 << 20))
    with opened(tree) as fd:
        os.close(nest(fd, "own"))
    (tree / "own/more").write_bytes(os.urandom(3 << 20))
    os.sync()
    with pytest.raises(OSError, match="Disk quota exceeded"):
        (tree / "file").write_bytes(os.urandom(3 << 20))
    (tree / "file").unlink()
    (volumes / "file").unlink()
    os.sync()
    (tree / "file").write_bytes(os.urandom(3 << 20))
    assert storage.snapshots.capabilities.size_limits


async def test_a_full_container_is_removed_with_its_limit(storage: Storage) -> None:
    snapshot, tree = await limited(storage, 4 << 20)
    with pytest.raises(OSError, match="Disk quota exceeded"):
        (tree / "file").write_bytes(os.urandom(6 << 20))
    assert len(groups(storage.top)) == 1
    facts = await storage.snapshots.facts()
    assert facts["quotas"] == "simple, limited containers: 1"
    assert facts["data and metadata"].endswith("MB set aside")
    other = await storage.snapshots.create_container("b" * 64, parent="", created_at_ns=1)
    (tree_of(storage, other) / "file").write_bytes(os.urandom(6 << 20))
    await storage.snapshots.remove(snapshot.key)
    await storage.snapshots.empty_trash()
    assert groups(storage.top) == []


async def test_no_quotas_are_switched_on_without_a_limit(storage: Storage) -> None:
    await storage.writable("a", await storage.image(BASE))
    assert (await storage.snapshots.facts())["quotas"] == "off"


async def test_full_quotas_do_not_limit_a_container(storage: Storage) -> None:
    """It would leave them by `btrfs subvolume create`, so they are refused."""
    sh("btrfs", "quota", "enable", storage.top)
    with pytest.raises(UnsupportedError, match="btrfs quota disable"):
        await limited(storage, 4 << 20)
    await storage.snapshots.remove("a" * 64)
    sh("btrfs", "quota", "disable", storage.top)
    snapshot, _ = await limited(storage, 4 << 20)
    fd = os.open(tree_of(storage, snapshot), os.O_RDONLY)
    assert btrfs_quota.mode(fd) == "simple"
    os.close(fd)


async def test_a_root_that_is_not_on_btrfs_is_refused(tmp_path: Path) -> None:
    with file_system(tmp_path / "other", "overlay") as top:
        storage = Storage(top, "btrfs", tmp_path)
        with pytest.raises(UnsupportedError, match=r"mkfs\.btrfs"):
            await storage.open()
        storage.db.close()
        assert not (top / "snapshots/trash").exists()


async def test_a_layer_that_somebody_deleted_is_said(storage: Storage) -> None:
    image = await storage.image(*LAYERS)
    sh("btrfs", "subvolume", "delete", storage.top / "snapshots/2")
    assert await storage.problems() == ["", "the layer's subvolume is missing"]
    with pytest.raises(AgentError, match=r"missing; run `criagent image fsck --repair`"):
        await storage.writable("a", image)
    await storage.snapshots.remove("a" * 64)
    assert storage.directories() == ["1"]


async def test_a_root_that_was_copied_file_by_file_is_said(storage: Storage) -> None:
    image = await storage.image(*LAYERS)
    root = storage.top / "snapshots"
    sh("cp", "-a", root / "2", root / "copy")
    await storage.snapshots.remove(image.layers[-1].chain_id)
    await storage.snapshots.empty_trash()
    (root / "copy").rename(root / "2")
    layer = Snapshot(number=2, key=image.layers[-1].chain_id, parent="", committed=True)
    assert "not a subvolume" in await storage.snapshots.problem(layer)


async def test_a_container_that_somebody_deleted_is_removed(storage: Storage) -> None:
    image = await storage.image(BASE)
    snapshot = await storage.writable("a", image)
    sh("btrfs", "subvolume", "delete", storage.top / f"snapshots/{snapshot.number}")
    with pytest.raises(AgentError, match="No such file or directory"):
        async with storage.root(snapshot, image):
            pass
    await storage.snapshots.remove(snapshot.key)
    assert storage.rows.get(snapshot.key) is None


async def test_a_file_system_that_turned_read_only(storage: Storage) -> None:
    """As after an error of the disk."""
    image = await storage.image(BASE)
    snapshot = await storage.writable("a", image)
    assert await storage.snapshots.health() == ""
    sh("mount", "-o", "remount,ro", storage.top)
    with pytest.raises(OSError, match="Read-only file system"):
        await storage.writable("b", image)
    with pytest.raises(OSError, match="Read-only file system"):
        await storage.snapshots.remove(snapshot.key)
    assert storage.rows.get(snapshot.key) == snapshot
    assert "is read-only" in await storage.snapshots.health()
    sh("mount", "-o", "remount,rw", storage.top)
    for letter in "ab":
        await storage.snapshots.remove(letter * 64)
    await storage.snapshots.empty_trash()
    assert storage.directories() == ["1"]


async def test_a_file_system_full_of_small_files_is_emptied(storage: Storage) -> None:
    """Metadata takes all the space: nothing can be renamed, and removal still works."""
    image = await storage.image(BASE)
    snapshot = await storage.writable("a", image)
    tree, made = tree_of(storage, snapshot), 0
    with contextlib.suppress(OSError):
        while True:
            (tree / f"{made}").write_bytes(b"x" * 2000)  # in the tree itself
            made += 1
    with pytest.raises(ExhaustedError, match="no space left"):
        await many(storage)
    for row in storage.rows.all():
        if not row.committed:
            await storage.snapshots.remove(row.key)
    await storage.snapshots.empty_trash()
    assert storage.directories() == ["1"]
    again = await storage.writable("a", image)
    (tree_of(storage, again) / "file").write_bytes(os.urandom(1 << 20))


async def test_full_metadata_is_reported_before_it_ends_all(tmp_path: Path) -> None:
    """The kernel calls space for data available then, and in the end turns read-only."""
    top, image = tmp_path / "disk", tmp_path / "image"
    top.mkdir()
    with image.open("wb") as file:
        file.truncate(256 << 20)
    sh("mkfs.btrfs", "-q", image)
    sh("mount", "-o", "loop", image, top)
    storage = await Storage(top, "btrfs", tmp_path).open()
    try:
        assert await storage.snapshots.health() == ""
        snapshot = await storage.snapshots.create_container("a" * 64, parent="", created_at_ns=1)
        tree = tree_of(storage, snapshot)
        with contextlib.suppress(OSError):
            (tree / "big").write_bytes(bytes(256 << 20))
        os.sync()
        os.truncate(tree / "big", 100 << 20)
        made = 0
        while not (problem := await storage.snapshots.health()):
            small_files(tree, made)
            made += 500
        assert "more of metadata" in problem
        assert "btrfs balance start" in problem
        facts = os.statvfs(top)
        assert facts.f_bavail * facts.f_frsize > 20 << 20
        await storage.snapshots.remove(snapshot.key)
        await storage.snapshots.empty_trash()
        assert await storage.snapshots.health() == ""
    finally:
        await storage.close()
        mount.detach_below(top)


def small_files(tree: Path, first: int) -> None:
    """Five hundred of them, which lie in the tree of the file system itself."""
    for n in range(first, first + 500):
        (tree / f"{n}").write_bytes(b"x" * 2000)
    os.sync()


async def many(storage: Storage) -> None:
    for n in range(1000):
        await storage.snapshots.create_container(f"{n:064x}", parent="", created_at_ns=1)


@pytest.mark.parametrize("point", POINTS)
async def test_a_crash_leaves_no_subvolume_and_no_limit(
    place: Path, living: Lives, point: str
) -> None:
    assert living.run(place, "btrfs", f"{point}#1") == -signal.SIGKILL
    assert living.run(place, "btrfs") == 0, living.output(place)
    assert (subvolumes(place), groups(place)) == ([], [])
