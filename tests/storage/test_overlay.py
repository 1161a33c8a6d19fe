# SPDX-License-Identifier: Apache-2.0
"""What only the storage driver overlay has: options of its mounts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from criagent.config.storage_section import Storage as StorageSection
from criagent.config.storage_section import StorageOverlay
from criagent.image.snapshots.driver import MountPoint
from criagent.image.snapshots.drivers.overlay import OverlayDriver
from criagent.kernel.mount import detach, detach_below, mount, mountinfo

pytestmark = pytest.mark.root


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs."""
    mount("tmpfs", tmp_path, "tmpfs")
    (tmp_path / "mounts").mkdir()
    yield tmp_path
    detach_below(tmp_path)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def driver(top: Path, threads: ThreadPoolExecutor, *, volatile: bool) -> OverlayDriver:
    """With one committed layer, 1, and the writable layer 2 over it."""
    section = StorageSection(overlay=StorageOverlay(volatile=volatile))
    one = OverlayDriver(top / "snapshots", section, threads)
    await one.prepare()
    await one.create_layer(1, None)
    (top / "snapshots/1/fs/big").write_bytes(os.urandom(1 << 20))
    (top / "snapshots/1/fs/d").mkdir()
    await one.commit_layer(1)
    await one.create_container(2, 1, 0)
    return one


def options(target: Path) -> tuple[str, ...]:
    (entry,) = [entry for entry in mountinfo() if entry.target == str(target)]
    return entry.super_options


@pytest.mark.parametrize("volatile", [False, True])
async def test_volatile_layers_are_mounted_once(
    top: Path, threads: ThreadPoolExecutor, *, volatile: bool
) -> None:
    """The kernel refuses what a crash of the node may have left; the agent only removes it."""
    one = await driver(top, threads, volatile=volatile)
    at = MountPoint(path=top / "mounts/2/rootfs")
    await one.mount_container(2, [1], at)
    found = options(at.path)
    assert any(option in {"volatile", "fsync=volatile"} for option in found) == volatile
    (at.path / "file").write_text("written")
    detach(at.path)
    assert (top / "snapshots/2/fs/file").read_text() == "written"
    if volatile:
        with pytest.raises(OSError, match="Invalid argument"):
            await one.mount_container(2, [1], at)
    await one.trash(2)
    await one.empty_trash()
    assert not (top / "snapshots/2").exists()
    assert list((top / "snapshots/trash").iterdir()) == []


async def test_image_volumes_are_not_volatile(top: Path, threads: ThreadPoolExecutor) -> None:
    one = await driver(top, threads, volatile=True)
    at = MountPoint(path=top / "mounts/volume")
    await one.mount_image([1], at)
    assert "volatile" not in " ".join(options(at.path))


async def test_a_layer_does_not_depend_on_the_parameters_of_the_module(
    top: Path, threads: ThreadPoolExecutor
) -> None:
    """A changed owner copies the content, and a directory of the image is not renamed in place."""
    one = await driver(top, threads, volatile=False)
    at = MountPoint(path=top / "mounts/2/rootfs")
    await one.mount_container(2, [1], at)
    os.chown(at.path / "big", 5, 5)
    with pytest.raises(OSError, match="cross-device"):
        (at.path / "d").rename(at.path / "e")
    upper = top / "snapshots/2/fs"
    assert (upper / "big").read_bytes() == (top / "snapshots/1/fs/big").read_bytes()
    marks = [name for path in upper.rglob("*") for name in os.listxattr(path)]
    assert [mark for mark in marks if "metacopy" in mark or "redirect" in mark] == []
    assert (await one.facts())["metacopy"] == "off"
