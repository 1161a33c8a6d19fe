# SPDX-License-Identifier: Apache-2.0
"""What only the storage driver native has: copies that share their blocks, by its key reflink."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest

from criagent.base.errors import UnsupportedError
from criagent.config.storage_section import Storage as StorageSection
from criagent.config.storage_section import StorageNative
from criagent.image.snapshots.drivers.native import NativeDriver
from criagent.kernel.mount import detach, mount

pytestmark = pytest.mark.root

SIZE = 320 << 20  # the least that xfs takes
BIG = 16 << 20
MAKE = {"xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"], "ext4": ["mkfs.ext4", "-q"]}


@contextlib.contextmanager
def file_system(top: Path, kind: str) -> Iterator[None]:
    image = top.with_name("image")
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run([*MAKE[kind], image], check=True, capture_output=True)
    top.mkdir()
    subprocess.run(["mount", "-o", "loop", image, top], check=True)
    try:
        yield
    finally:
        detach(top)
        image.unlink()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


Reflink = Literal["auto", "always", "never"]


async def taken(top: Path, threads: ThreadPoolExecutor, reflink: Reflink) -> int:
    """Bytes that a container over an image of `BIG` bytes takes before it writes anything."""
    section = StorageSection(native=StorageNative(reflink=reflink))
    driver = NativeDriver(top / "snapshots", section, threads)
    await driver.prepare()
    await driver.create_layer(1, None)
    file = top / "snapshots/1/fs/big"
    file.write_bytes(os.urandom(BIG))
    await driver.commit_layer(1)
    os.sync()
    before = os.statvfs(top)
    await driver.create_container(2, 1, 0)
    os.sync()
    assert (top / "snapshots/2/fs/big").read_bytes() == file.read_bytes()
    return (before.f_bfree - os.statvfs(top).f_bfree) * before.f_frsize


@pytest.mark.parametrize(
    ("kind", "reflink", "shared"),
    [
        ("xfs", "auto", True),
        ("xfs", "always", True),
        ("xfs", "never", False),
        ("btrfs", "auto", True),
        ("btrfs", "never", False),
        ("ext4", "auto", False),
        ("ext4", "never", False),
    ],
)
async def test_copies_share_blocks_where_the_file_system_can(
    tmp_path: Path, threads: ThreadPoolExecutor, kind: str, reflink: Reflink, *, shared: bool
) -> None:
    with file_system(tmp_path / "disk", kind):
        used = await taken(tmp_path / "disk", threads, reflink)
    assert used < BIG // 8 if shared else BIG <= used < 2 * BIG


async def test_always_is_refused_where_it_cannot(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    mount("tmpfs", tmp_path, "tmpfs")
    try:
        with pytest.raises(UnsupportedError, match=r"storage\.native\.reflink"):
            await taken(tmp_path, threads, "always")
    finally:
        detach(tmp_path)
