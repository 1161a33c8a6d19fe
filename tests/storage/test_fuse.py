# SPDX-License-Identifier: Apache-2.0
"""What only the driver fuse-overlayfs does: a process behind each mount."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from criagent.base.errors import UnsupportedError
from criagent.image.snapshots.drivers import fuse_overlayfs
from tests.storage.ground import Storage
from tests.storage.grounds import file_system
from tests.support.unpack_place import directory, hard, member, tar
from tests.support.waiting import until

pytestmark = pytest.mark.root

LOW = tar(directory("d", mode=0o2755), member("d/low", b"low"), member("d/gone", b"gone"))
HIGH = tar(member("d/.wh.gone"), member("d/high", b"high"), hard("d/hard", "d/low"))


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    with file_system(tmp_path / "disk", "fuse-overlayfs") as found:
        yield found


@pytest.fixture
async def fuse(top: Path) -> AsyncIterator[Storage]:
    one = await Storage(top, "fuse-overlayfs", top.parent).open()
    yield one
    await one.close()


def programs(top: Path) -> list[int]:
    """Pids of the programs behind mounts below `top`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            argv = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
        except OSError:
            continue
        if argv[0] == "fuse-overlayfs" and len(argv) > 1 and argv[-2].startswith(f"{top.parent}/"):
            found.append(int(process.name))
    return found


async def test_a_program_for_each_mount_that_ends_with_it(fuse: Storage) -> None:
    image = await fuse.image(LOW, HIGH)
    until(lambda: not programs(fuse.top), "the end of the mounts of layers")
    snapshot = await fuse.writable("a", image)
    async with fuse.root(snapshot, image) as root:
        (pid,) = programs(fuse.top)
        assert (root / "d/hard").read_text() == "low"
        links = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
        files = [link for link in links if link.startswith("/") and link != "/dev/null"]
        assert all(link.startswith((f"{fuse.top.parent}/", "/dev/fuse")) for link in files), links
        await fuse.reopen()
        until(lambda: programs(fuse.top) == [pid], "the end of the trial at the start")
        assert (root / "d/high").read_text() == "high"
    until(lambda: not programs(fuse.top), "the end of the container's program")


async def test_a_killed_program_is_an_error_for_its_container_alone(fuse: Storage) -> None:
    image = await fuse.image(LOW, HIGH)
    first, second = await fuse.writable("a", image), await fuse.writable("b", image)
    async with fuse.root(first, image) as one:
        (pid,) = programs(fuse.top)
        async with fuse.root(second, image) as two:
            os.kill(pid, signal.SIGKILL)
            until(lambda: pid not in programs(fuse.top), "its end")
            with pytest.raises(OSError, match="Transport endpoint is not connected"):
                (one / "d/low").read_text()
            assert (two / "d/low").read_text() == "low"
    await fuse.snapshots.remove(first.key)
    await fuse.snapshots.empty_trash()
    third = await fuse.writable("c", image)
    async with fuse.root(third, image) as root:
        assert (root / "d/low").read_text() == "low"


async def test_sixty_layers(fuse: Storage) -> None:
    image = await fuse.image(*(tar(member(f"f{n}", b"x")) for n in range(60)))
    async with fuse.root(await fuse.writable("a", image), image) as root:
        assert len(list(root.iterdir())) == 60


async def test_what_is_missing_is_named(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_overlayfs, "_DEVICE", top / "fuse")
    with pytest.raises(UnsupportedError, match=r"modprobe fuse"):
        await Storage(top, "fuse-overlayfs", top.parent).open()
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UnsupportedError, match="install fuse-overlayfs"):
        await Storage(top, "fuse-overlayfs", top.parent).open()


async def test_a_root_that_its_options_cannot_name(top: Path) -> None:
    odd = top / "a:b"
    odd.mkdir()
    with pytest.raises(UnsupportedError, match="set another directory"):
        await Storage(odd, "fuse-overlayfs", top.parent).open()
