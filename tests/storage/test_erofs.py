# SPDX-License-Identifier: Apache-2.0
"""What only the driver erofs does: images of layers, ways to mount them, fs-verity."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from criagent.base.errors import AgentError, CorruptError, ExhaustedError, UnsupportedError
from criagent.config.storage_section import Storage as StorageSection
from criagent.config.storage_section import StorageErofs
from criagent.kernel import mount
from criagent.model.image import Image, Snapshot
from criagent.process.child import run
from tests.storage.ground import Storage
from tests.storage.grounds import SIZE, file_system
from tests.support.unpack_place import Member, directory, hard, listed, member, tar

pytestmark = pytest.mark.root

LOW = tar(directory("d"), member("d/low", b"low" * 5000), member("d/gone", b"gone"))
HIGH = tar(member("d/.wh.gone"), member("d/high", b"high"), hard("d/hard", "d/low"))


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    with file_system(tmp_path / "disk", "erofs") as found:
        yield found


@asynccontextmanager
async def opened(top: Path, **keys: str) -> AsyncIterator[Storage]:
    """The driver with these keys on the file system at `top`; its database is beside it."""
    section = StorageSection(erofs=StorageErofs(**keys))  # type: ignore[arg-type]
    storage = await Storage(top, "erofs", top.parent, section).open()
    try:
        yield storage
    finally:
        await storage.close()


@pytest.fixture
def verity_top(tmp_path: Path) -> Iterator[Path]:
    """A file system with fs-verity."""
    if not Path("/sys/fs/ext4/features/verity").exists():
        pytest.skip("this kernel has no fs-verity (CONFIG_FS_VERITY)")
    image, top = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(SIZE)
    top.mkdir()
    # Blocks of fs-verity must not be larger than those of the file system.
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-O", "verity", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, top], check=True)
    yield top
    mount.detach_below(top)


def mounted(storage: Storage) -> list[str]:
    """Sources of the mounts of layers."""
    prefix = f"{storage.snapshots.root}/"
    return [entry.source for entry in mount.mountinfo() if entry.target.startswith(prefix)]


def committed(storage: Storage) -> list[Snapshot]:
    return [row for row in storage.rows.all() if row.committed]


def image_of(storage: Storage, layer: Snapshot) -> Path:
    return storage.snapshots.root / str(layer.number) / "image"


async def contents(storage: Storage, image: Image, letter: str = "a") -> dict[str, str]:
    """The files that a container of the image sees."""
    snapshot = await storage.writable(letter, image)
    async with storage.root(snapshot, image) as root:
        found = listed(root)
    await storage.snapshots.remove(snapshot.key)
    return found


async def drop(storage: Storage, image: Image) -> None:
    for layer in reversed(image.layers):
        await storage.snapshots.remove(layer.chain_id)
    await storage.snapshots.empty_trash()


async def test_a_layer_is_one_file_that_is_mounted_once(top: Path) -> None:
    async with opened(top) as storage:
        image = await storage.image(LOW, HIGH)
        rows = committed(storage)
        for row in rows:
            assert not (image_of(storage, row).parent / "fs").exists()
            assert row.used_bytes == image_of(storage, row).stat().st_blocks * 512
        first, second = await storage.writable("a", image), await storage.writable("b", image)
        async with storage.root(first, image), storage.root(second, image), storage.volume(image):
            assert len(mounted(storage)) == 2
            devices = {
                (image_of(storage, row).parent / "mnt").stat().st_dev: row.number for row in rows
            }
            assert len(devices) == 2
        assert len(mounted(storage)) == 2
        for letter in "ab":
            await storage.snapshots.remove(letter * 64)
        await drop(storage, image)
        assert (mounted(storage), storage.directories()) == ([], [])


async def test_layers_stay_mounted_over_a_restart_while_they_are_used(top: Path) -> None:
    async with opened(top) as storage:
        image, other = await storage.image(LOW), await storage.image(HIGH_ALONE)
        await contents(storage, other, "b")
        snapshot = await storage.writable("a", image)
        async with storage.root(snapshot, image) as root:
            assert len(mounted(storage)) == 2
            await storage.reopen()
            assert len(mounted(storage)) == 1
            assert (root / "d/low").read_bytes() == b"low" * 5000
            assert sorted(await contents(storage, other, "b")) == ["high"]
        await storage.reopen()
        assert mounted(storage) == []
        assert sorted(await contents(storage, image, "c")) == ["d", "d/gone", "d/low"]


async def test_a_removed_layer_lives_until_its_containers_end(top: Path) -> None:
    async with opened(top) as storage:
        image = await storage.image(LOW)
        snapshot = await storage.writable("a", image)
        async with storage.root(snapshot, image) as root:
            await drop(storage, image)
            assert mounted(storage) == []
            assert (root / "d/low").read_bytes() == b"low" * 5000


@pytest.mark.parametrize(
    "keys",
    [
        {"backing": "file"},
        {"backing": "loop"},
        {"compression": "lz4hc"},
        {"compression": "lz4hc,12", "backing": "loop"},
        {"compression": "zstd,level=3"},
    ],
    ids=str,
)
async def test_ways_to_store_and_mount(top: Path, keys: dict[str, str]) -> None:
    text = b"compressible " * 100_000
    async with opened(top, **keys) as storage:
        image = await storage.image(tar(member("text", text)), HIGH_ALONE)
        snapshot = await storage.writable("a", image)
        async with storage.root(snapshot, image) as root:
            assert (root / "text").read_bytes() == text
            assert (root / "high").read_text() == "high"
        loops = [source for source in mounted(storage) if source.startswith("/dev/loop")]
        assert len(loops) == (2 if keys.get("backing") == "loop" else 0)
        lowest = min(committed(storage), key=lambda row: row.number)
        assert (lowest.used_bytes < len(text) / 10) == ("compression" in keys)
        await storage.snapshots.remove(snapshot.key)
        await drop(storage, image)
    listing = await run(["losetup", "--list", "-n", "-O", "BACK-FILE"], limit_s=10)
    assert f"{top}/" not in listing.output


HIGH_ALONE = tar(member("high", b"high"))


async def test_an_algorithm_that_mkfs_does_not_have(top: Path) -> None:
    with pytest.raises(AgentError, match=r"mkfs\.erofs"):
        async with opened(top, compression="rot13"):
            pass


def hollow(size: int) -> Member:
    content = f"1\n{size - 4}\n4\n".encode().ljust(512, b"\0") + b"tail"
    entry = member("sparse", content)
    entry[0].pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "sparse",
        "GNU.sparse.realsize": str(size),
    }
    return entry


@pytest.mark.parametrize("compression", ["", "lz4hc"])
@pytest.mark.parametrize("size", [1 << 20, 1 << 30, 1 << 40])
async def test_a_hollow_file_takes_no_space(top: Path, size: int, compression: str) -> None:
    """Of a lastlog, say; an image of 1 TiB would not fit, and zeros would take hours to read."""
    async with opened(top, compression=compression) as storage:
        image = await storage.image(tar(hollow(size), member("full", b"full")))
        (row,) = committed(storage)
        assert row.used_bytes < 16 << 20
        snapshot = await storage.writable("a", image)
        async with storage.root(snapshot, image) as root:
            assert (root / "full").read_text() == "full"
            with (root / "sparse").open("rb") as file:
                assert file.seek(0, os.SEEK_END) == size
                file.seek(-5, os.SEEK_END)
                assert file.read() == b"\0tail"


async def test_an_image_that_does_not_fit_beside_its_tree(top: Path) -> None:
    async with opened(top) as storage:
        with pytest.raises(ExhaustedError, match="no space left"):
            await storage.image(tar(member("big", os.urandom(SIZE * 2 // 3))))
        await storage.snapshots.empty_trash()
        assert (storage.rows.all(), storage.directories()) == ([], [])
        image = await storage.image(LOW, HIGH)
        assert sorted(await contents(storage, image)) == ["d", "d/hard", "d/high", "d/low"]


async def test_images_that_share_layers_are_pulled_at_once(top: Path) -> None:
    """One pull turns a layer into an image while the other settles over its tree."""
    async with opened(top) as storage:
        for turn in range(8):
            base = tar(directory("d"), member("d/low", b"low"), member(f"turn{turn}"))
            others = [
                tar(directory("d"), member(f"d/{n}", b"n"), hard("d/h", "d/low")) for n in "xyz"
            ]
            images = await asyncio.gather(*(storage.image(base, HIGH, other) for other in others))
            for n, image in zip("xyz", images, strict=True):
                assert (await contents(storage, image))[f"d/{n}"] == "n"
        assert set(await storage.problems()) == {""}
        trees = [
            row for row in committed(storage) if (image_of(storage, row).parent / "fs").exists()
        ]
        assert trees == []


async def test_three_hundred_layers(top: Path) -> None:
    async with opened(top) as storage:
        image = await storage.image(*(tar(member(f"f{n}", b"x")) for n in range(300)))
        assert len(await contents(storage, image)) == 300
        await drop(storage, image)
        assert mounted(storage) == []


async def test_on_a_private_mount_the_worker_sees_the_layers_below(top: Path) -> None:
    mount.make_private(top)
    async with opened(top) as storage:
        await storage.image(LOW)
        image = await storage.image(LOW, HIGH)
        assert (await contents(storage, image))["d/hard"] == "low" * 5000
        await storage.reopen()
        here = [e for e in mount.mountinfo() if e.target == str(storage.snapshots.root)]
        assert [entry.shared for entry in here] == [True]


@pytest.mark.parametrize("offset", [1024, None], ids=["super block", "gone"])
async def test_a_damaged_image_is_refused_with_the_cure(top: Path, offset: int | None) -> None:
    async with opened(top) as storage:
        image = await storage.image(LOW)
        (row,) = committed(storage)
        file = image_of(storage, row)
        if offset is None:
            file.unlink()
        else:
            with file.open("r+b") as opened_file:
                opened_file.seek(offset)
                opened_file.write(b"\0" * 64)
        with pytest.raises(CorruptError, match=f"layer {row.number}: .*image fsck --repair"):
            await contents(storage, image)
        assert "digest" in await storage.snapshots.problem(row) or offset is None


async def test_without_mkfs_the_package_is_named(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = top / "bin"
    bare.mkdir()
    (bare / "prlimit").symlink_to("/usr/bin/prlimit")
    for path in (str(bare), "/nonexistent"):
        monkeypatch.setenv("PATH", path)
        with pytest.raises(UnsupportedError, match="install erofs-utils"):
            async with opened(top):
                pass


async def test_an_old_mkfs_is_refused(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = top / "bin"
    bare.mkdir()
    (bare / "prlimit").symlink_to("/usr/bin/prlimit")
    program = bare / "mkfs.erofs"
    program.write_text("#!/bin/sh\necho 'mkfs.erofs (erofs-utils) 1.5'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(bare))
    with pytest.raises(UnsupportedError, match=r"needs erofs-utils 1\.6"):
        async with opened(top):
            pass


async def test_what_an_operator_may_want_to_know(top: Path) -> None:
    async with opened(top, compression="zstd") as storage:
        facts = await storage.driver.facts()
        assert facts["erofs-utils"].startswith("1.")
        assert facts["compression of new layers"] == "zstd"
        assert facts["layers mounted from"].startswith("files")


async def test_fs_verity_where_the_file_system_has_none(top: Path) -> None:
    with pytest.raises(UnsupportedError, match="tune2fs -O verity"):
        async with opened(top, verity="fs-verity"):
            pass


async def test_fs_verity_refuses_a_changed_layer(verity_top: Path) -> None:
    async with opened(verity_top, verity="fs-verity") as storage:
        image = await storage.image(LOW, HIGH)
        assert (await contents(storage, image))["d/hard"] == "low" * 5000
        assert await storage.problems() == ["", ""]
        for row in committed(storage):
            mount.detach(image_of(storage, row).parent / "mnt")
        row = committed(storage)[0]
        file = image_of(storage, row)
        with pytest.raises(OSError, match="Operation not permitted"):
            file.open("r+b")
        changed = bytearray(file.read_bytes())
        changed[-1] ^= 1
        file.unlink()
        file.write_bytes(changed)
        with pytest.raises(CorruptError, match=f"layer {row.number}: .*fs-verity digest"):
            await contents(storage, image)
        assert "fs-verity digest" in await storage.snapshots.problem(row)


@pytest.mark.parametrize("what", ["super block", "content"])
async def test_fs_verity_finds_what_a_disk_changed(
    verity_top: Path, tmp_path: Path, what: str
) -> None:
    """Bytes that changed below the file system: no digest has to be read for that."""
    content = os.urandom(1 << 20)
    async with opened(verity_top, verity="fs-verity") as storage:
        image = await storage.image(tar(member("file", content)))
        (row,) = committed(storage)
        stored = image_of(storage, row).read_bytes()
        needle = stored[1024:1088] if what == "super block" else content[:64]
    assert (await run(["umount", verity_top], limit_s=10)).status == 0
    with (tmp_path / "image").open("r+b") as disk:
        copies = [found.start() for found in re.finditer(re.escape(needle), disk.read())]
        assert copies  # the deleted tree of the layer may have left one
        for at in copies:
            disk.seek(at + 50)
            disk.write(bytes([needle[50] ^ 1]))
    again = ["mount", "-o", "loop", str(tmp_path / "image"), str(verity_top)]
    assert (await run(again, limit_s=10)).status == 0
    async with opened(verity_top, verity="fs-verity") as storage:
        if what == "super block":
            with pytest.raises(CorruptError, match=r"cannot be mounted: .*image fsck --repair"):
                await contents(storage, image)
        else:
            async with storage.root(await storage.writable("c", image), image) as root:
                with pytest.raises(OSError, match="Input/output error"):
                    (root / "file").read_bytes()
        assert "cannot be read" in await storage.snapshots.problem(row)


async def test_fs_verity_refuses_layers_from_before_it(verity_top: Path) -> None:
    async with opened(verity_top) as storage:
        image = await storage.image(LOW)
    async with opened(verity_top, verity="fs-verity") as storage:
        with pytest.raises(CorruptError, match="without fs-verity"):
            await contents(storage, image)
        assert await storage.problems() == ["the layer was unpacked without fs-verity"]
