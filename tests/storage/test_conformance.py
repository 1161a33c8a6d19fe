# SPDX-License-Identifier: Apache-2.0
"""What every storage driver has to do, on a real file system with real layers."""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import stat
from pathlib import Path

import pytest

from criagent.base.errors import AgentError, ExhaustedError, UnsupportedError
from criagent.image.snapshots.driver import MappedIds, MountPoint
from criagent.model.common import IdMapping, NamespaceMode, UserNamespace
from criagent.process.child import Options
from criagent.process.child import run as run_child
from criagent.runtime.pod.user_namespaces import namespace_maker
from tests.storage.ground import Storage, write_until_full
from tests.storage.grounds import SIZE
from tests.storage.pools import ZPOOL, run
from tests.support.page_cache import held
from tests.support.unpack_place import (
    CHAR,
    FIFO,
    Member,
    directory,
    hard,
    link,
    listed,
    member,
    tar,
)

pytestmark = pytest.mark.root

HOST = 131072
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service+ep
BASE = tar(
    directory("d", mode=0o2750, uid=5, gid=6, mtime=1000),
    member("d/low", b"low"),
    member("d/gone", b"gone"),
    directory("whole"),
    member("whole/a", b"a"),
    member("whole/b", b"b"),
    member("big", b"x" * 100_000),
    link("link", "d/low"),
)


def with_xattr(entry: Member, name: str, value: bytes) -> Member:
    text = value.decode("utf-8", "surrogateescape")
    entry[0].pax_headers = {f"SCHILY.xattr.{name}": text}
    return entry


def sparse() -> Member:
    """A file of 8 MiB with four bytes at its end, as GNU tar 1.0 of PAX has it."""
    content = b"1\n8388604\n4\n".ljust(512, b"\0") + b"tail"
    entry = member("sparse", content)
    entry[0].pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "sparse",
        "GNU.sparse.realsize": str(8 << 20),
    }
    return entry


async def test_files_have_all_they_had_in_the_layer(storage: Storage) -> None:
    image = await storage.image(
        tar(
            member("one", b"1", mode=0o640, uid=7, gid=8, mtime=1000),
            hard("two", "one"),
            member("setuid", b"", mode=0o4755),
            with_xattr(member("marked", b""), "user.mark", b"value"),
            with_xattr(member("capable", b"", mode=0o755), "security.capability", CAPABILITY),
            sparse(),
            member("null", kind=CHAR, devmajor=1, devminor=3),
            member("pipe", kind=FIFO),
        ),
        tar(member("above", b"above")),
    )
    async with storage.root(await storage.writable("a", image), image) as root:
        one = (root / "one").stat()
        assert (one.st_uid, one.st_gid, one.st_mtime) == (7, 8, 1000)
        assert stat.S_IMODE(one.st_mode) == 0o640
        assert one.st_nlink == 2
        assert one.st_ino == (root / "two").stat().st_ino
        assert stat.S_IMODE((root / "setuid").stat().st_mode) == 0o4755
        assert os.getxattr(root / "marked", "user.mark") == b"value"
        assert os.getxattr(root / "capable", "security.capability") == CAPABILITY
        hollow = (root / "sparse").stat()
        assert hollow.st_size == 8 << 20
        with (root / "sparse").open("rb") as file:
            data = os.lseek(file.fileno(), 0, os.SEEK_DATA)  # FUSE has no holes, erofs no blocks
        assert data > 7 << 20 or hollow.st_blocks * 512 < 1 << 20
        assert (root / "sparse").read_bytes()[-5:] == b"\0tail"
        assert (root / "null").stat().st_rdev == os.makedev(1, 3)
        assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
        assert (root / "above").read_text() == "above"


async def test_whiteouts_and_opaque_directories(storage: Storage) -> None:
    image = await storage.image(
        BASE,
        tar(
            member("d/.wh.gone"),
            member("whole/.wh..wh..opq"),
            member("whole/c", b"c"),
            member("new/.wh.nothing"),
            member("d/high", b"high"),
        ),
        tar(member("d/gone", b"again"), member(".wh.big"), member("link/x", b"through")),
    )
    async with storage.root(await storage.writable("a", image), image) as root:
        found = listed(root)
    assert found == {
        "d": "/", "d/low": "/", "d/low/x": "through", "d/gone": "again", "d/high": "high",
        "whole": "/", "whole/c": "c", "link": "-> d/low",
    }  # fmt: skip


async def test_directories_that_a_layer_only_passes_keep_their_attributes(storage: Storage) -> None:
    image = await storage.image(BASE, tar(member("d/new", b"new")))
    async with storage.root(await storage.writable("a", image), image) as root:
        facts = (root / "d").stat()
        assert (facts.st_uid, facts.st_gid) == (5, 6)
        assert stat.S_IMODE(facts.st_mode) == 0o2750


async def test_containers_do_not_see_each_others_changes(storage: Storage) -> None:
    image = await storage.image(BASE, tar(member("d/new", b"new")))
    first, second = await storage.writable("a", image), await storage.writable("b", image)
    async with storage.root(first, image) as one, storage.root(second, image) as two:
        before = listed(two)
        (one / "d/low").write_text("changed")
        (one / "d/gone").unlink()
        os.chown(one / "big", 9, 9)
        (one / "more").write_text("more")
        assert listed(two) == before
        assert (two / "big").stat().st_uid == 0
    third = await storage.writable("c", image)
    async with storage.root(third, image) as root:
        assert listed(root) == before
    assert await storage.problems() == ["", ""]


@pytest.mark.long
async def test_copies_up_show_or_do_not(storage: Storage, column: tuple[str, str]) -> None:
    """Where a first write copies the file, directories of the image cannot be renamed. With the
    kernel's overlayfs a mapping of the file stays the old one; a descriptor does not."""
    image = await storage.image(BASE)
    async with storage.root(await storage.writable("a", image), image) as root:
        try:
            (root / "whole").rename(root / "moved")
            renamed = True
        except OSError as error:
            assert error.errno == errno.EXDEV
            renamed = False
        with (root / "d/low").open("rb") as before:
            mapped = mmap.mmap(before.fileno(), 3, prot=mmap.PROT_READ)
            (root / "d/low").write_bytes(b"new")
            assert before.read() == b"new"
            fresh = mapped[:] == b"new"
            mapped.close()
    copies_up = column[0] in {"overlay", "erofs", "fuse-overlayfs"}
    assert (renamed, fresh) == (not copies_up, column[0] not in {"overlay", "erofs"})


async def test_the_page_cache_is_shared_or_not(storage: Storage, column: tuple[str, str]) -> None:
    """By containers of one image, as the driver says."""
    driver, kind = column
    if kind == "tmpfs" and driver != "devmapper":
        pytest.skip("files on tmpfs are memory: there is no page cache to compare")
    size = 8 << 20
    image = await storage.image(tar(member("large", os.urandom(size))))
    os.sync()
    containers = [await storage.writable(letter, image) for letter in "abc"]
    async with contextlib.AsyncExitStack() as stack:
        roots = [await stack.enter_async_context(storage.root(one, image)) for one in containers]
        for root in roots:
            assert len((root / "large").read_bytes()) == size
        copies = 1 if storage.snapshots.capabilities.shared_page_cache else 3
        found = held([root / "large" for root in roots])
        # zfs reads into its own cache, the ARC, which is not the page cache.
        assert found == copies * size or (driver == "zfs" and found == 0)


async def test_an_image_without_layers(storage: Storage) -> None:
    image = await storage.image()
    async with storage.root(await storage.writable("a", image), image) as root:
        assert list(root.iterdir()) == []
        (root / "file").write_text("x")
    async with storage.volume(image) as volume:
        assert list(volume.iterdir()) == []


async def test_an_image_volume_is_read_only_even_after_a_remount(storage: Storage) -> None:
    image = await storage.image(BASE, tar(member("d/new", b"new")))
    async with storage.volume(image) as volume:
        assert (volume / "d/new").read_text() == "new"
        await run_child(["mount", "-o", "remount,bind,rw", volume], limit_s=10)
        with pytest.raises(OSError, match="Read-only file system"):
            (volume / "d/new").write_text("changed")


async def test_the_layers_of_an_artifact_are_files_of_a_volume(storage: Storage) -> None:
    """Of any content, a tar archive too; in directories that several of them share."""
    files = {"weights/model.bin": os.urandom(300_000), "weights/a.tar": BASE, "config": b""}
    artifact = await storage.artifact(files)
    async with storage.volume(artifact) as volume:
        assert {name: (volume / name).read_bytes() for name in files} == files
        found = {str(path.relative_to(volume)) for path in volume.rglob("*")}
        assert found == {*files, "weights"}
        with pytest.raises(OSError, match="Read-only file system"):
            (volume / "config").write_text("changed")
    assert await storage.problems() == [""] * len(files)


async def test_usage_grows_with_what_is_written(storage: Storage, column: tuple[str, str]) -> None:
    image = await storage.image(BASE)
    snapshot = await storage.writable("a", image)

    async with storage.root(snapshot, image) as root:

        def used() -> tuple[int, int]:
            os.sync()  # file systems count blocks that were allocated
            if column[0] == "zfs":
                run("zpool", "sync", ZPOOL)  # which it does every 5 s, sync or not
            count = storage.snapshots.counted(snapshot, root).count()
            assert count.advance(math.inf)
            return count.usage

        before, inodes = used()
        (root / "written").write_bytes(os.urandom(1 << 20))
        assert (1 << 20) <= used()[0] - before < (2 << 20)
        assert used()[1] == inodes + 1
        storage.snapshots.volumes(snapshot).mkdir()
        (storage.snapshots.volumes(snapshot) / "file").write_bytes(os.urandom(1 << 20))
        assert (2 << 20) <= used()[0] - before < (3 << 20)
        assert used()[1] == inodes + 2


async def test_removal_while_mounted(storage: Storage) -> None:
    image = await storage.image(BASE)
    snapshot = await storage.writable("a", image)
    async with storage.root(snapshot, image) as root, contextlib.AsyncExitStack() as stack:
        (root / "file").write_text("open")
        file = stack.enter_context((root / "file").open())
        await storage.snapshots.remove(snapshot.key)
        await storage.snapshots.empty_trash()
        assert file.read() == "open"
    await storage.snapshots.empty_trash()  # a volume in use stays until then
    assert storage.rows.get(snapshot.key) is None
    assert len(storage.directories()) == 1  # the layer
    again = await storage.writable("a", image)
    async with storage.root(again, image) as root:
        assert not (root / "file").exists()


async def test_everything_is_there_after_a_restart(storage: Storage) -> None:
    image = await storage.image(BASE)
    snapshot = await storage.writable("a", image)
    async with storage.root(snapshot, image) as root:
        (root / "file").write_text("written")
    await storage.reopen()
    found = storage.rows.get(snapshot.key)
    assert found is not None
    async with storage.root(found, image) as root:
        assert (root / "file").read_text() == "written"
        assert (root / "d/low").read_text() == "low"
    assert await storage.image(BASE) == image


async def test_a_row_without_its_directory_is_removed(storage: Storage) -> None:
    """A crash between the two."""
    await storage.rows.reserve("a" * 64)
    await storage.reopen()
    await storage.snapshots.remove("a" * 64)
    assert (storage.rows.all(), storage.directories()) == ([], [])


async def test_directories_without_a_row_are_swept(storage: Storage) -> None:
    """A crash in a removal, or a database that is older than the disk."""
    image = await storage.image(BASE)
    await storage.writable("a", image)
    await storage.rows.delete("a" * 64)
    for layer in image.layers:
        await storage.rows.delete(layer.chain_id)
    assert len(storage.directories()) == 2
    await storage.reopen()
    assert storage.directories() == []


async def test_a_damaged_layer_is_found(storage: Storage) -> None:
    image = await storage.image(BASE)
    (layer,) = storage.rows.all()
    assert await storage.problems() == [""]
    await storage.damage(layer, "d/low")
    assert "instead of" in await storage.snapshots.problem(layer)
    await storage.snapshots.remove(image.layers[0].chain_id)
    assert "missing" in await storage.snapshots.problem(layer)


async def test_a_layer_is_compared_with_its_blob(storage: Storage, column: tuple[str, str]) -> None:
    image = await storage.image(
        BASE,
        tar(
            member("d/.wh.gone"),
            member("whole/.wh..wh..opq"),
            hard("whole/low", "d/low"),  # which only the layer below has
            member("new/.wh.nothing"),
            with_xattr(member("capable", b"", mode=0o755), "security.capability", CAPABILITY),
            member("null", kind=CHAR, devmajor=1, devminor=3),
        ),
        tar(member("d/gone", b"again"), member(".wh.big"), member("link/x", b"through")),
        tar(member("d/.wh.low"), member("deep/er/file", b"implied")),
    )
    await storage.snapshots.empty_trash()  # of layers that were written twice
    rows, there = storage.rows.all(), storage.directories()
    assert await storage.problems() == [""] * 4
    found = [str(await storage.differences(image.layers[:n])) for n in range(1, 5)]
    assert found == [""] * 4
    top = storage.rows.get(image.layers[-1].chain_id)
    assert top is not None
    await storage.damage(top, "deep/er/file")  # zfs changes no layer that has others above it
    found = [str(await storage.differences(image.layers))]
    # erofs keeps an image, all of which the check of its digest reads
    assert found == ([""] if column[0] == "erofs" else ["'deep/er/file' is missing"])
    await storage.snapshots.empty_trash()
    assert (storage.rows.all(), storage.directories()) == (rows, there)


async def test_a_layer_that_does_not_fit_leaves_nothing(storage: Storage) -> None:
    layers = [tar(member(f"part{n}", os.urandom(SIZE // 3))) for n in range(4)]
    with pytest.raises(ExhaustedError, match="no space left"):
        await storage.image(BASE, *layers)
    await storage.snapshots.empty_trash()
    assert (storage.rows.all(), storage.directories()) == ([], [])
    image = await storage.image(BASE)  # the space is free again
    assert await storage.problems() == [""]
    assert len(image.layers) == 1


async def test_a_container_that_does_not_fit_leaves_nothing(
    storage: Storage, column: tuple[str, str]
) -> None:
    image = await storage.image(BASE)
    filler = storage.snapshots.root / "filler"
    write_until_full(filler)
    before = storage.directories()
    try:
        await storage.writable("a", image)
    except ExhaustedError as error:
        assert "no space left" in str(error)
    await storage.snapshots.remove("a" * 64)
    filler.unlink()
    if column[0] == "zfs":
        run("zpool", "sync", ZPOOL)  # which frees the blocks
    await storage.snapshots.empty_trash()
    assert storage.directories() == before
    async with storage.root(await storage.writable("b", image), image) as root:
        assert (root / "big").stat().st_size == 100_000


async def test_user_namespaces(storage: Storage) -> None:
    """The root of a pod's user namespace owns its files, and the layers stay the node's."""
    ids = (IdMapping(container_id=0, host_id=HOST, length=65536),)
    wanted = UserNamespace(mode=NamespaceMode.POD, uids=ids, gids=ids)
    image = await storage.image(BASE)
    snapshot = await storage.writable("a", image)
    async with namespace_maker(wanted) as pid:
        mapped = MappedIds(
            userns=Path(f"/proc/{pid}/ns/user"),
            uid=HOST,
            gid=HOST,
            lower_layers=storage.mounts / "lower",
        )
        assert await storage.driver.userns_problem(mapped) == ""
        async with storage.root(snapshot, image, mapped) as root:
            assert (root / "big").stat().st_uid == HOST
            assert (root / "d").stat().st_uid == HOST + 5
            assert stat.S_IMODE(root.parent.stat().st_mode) == 0o710
            assert root.parent.stat().st_gid == HOST
            enter = ["nsenter", f"--user=/proc/{pid}/ns/user", "touch", "new"]
            assert (await run_child(enter, limit_s=10, options=Options(cwd=root))).status == 0
            assert (root / "new").stat().st_uid == HOST
        async with storage.volume(image, mapped) as volume:
            assert (volume / "big").stat().st_uid == HOST
    async with storage.volume(image) as volume:
        assert (volume / "big").stat().st_uid == 0


async def test_selinux_labels_or_a_clear_refusal(storage: Storage) -> None:
    """The kernel of the test node has no SELinux: overlay's mount is refused by it."""
    image = await storage.image(BASE)
    snapshot = await storage.writable("a", image)
    at = MountPoint(path=storage.mounts / "a/rootfs", label="system_u:object_r:container_file_t:s0")
    kind = AgentError if storage.snapshots.capabilities.selinux_labels else UnsupportedError
    with pytest.raises(kind) as caught:
        await storage.snapshots.mount_container(snapshot, image, at)
    assert storage.snapshots.capabilities.selinux_labels or "runtime.selinux" in str(caught.value)
