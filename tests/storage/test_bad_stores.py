# SPDX-License-Identifier: Apache-2.0
"""A store that is read-only, damaged, lost in part, or without the programs of its driver."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from criagent.base.errors import AgentError, UnsupportedError
from criagent.config.storage_drivers import KNOWN
from tests.storage.ground import Storage
from tests.storage.grounds import absent, file_system, ground
from tests.storage.killed import Lives
from tests.support.unpack_place import directory, listed, member, tar

pytestmark = pytest.mark.root

BASE = tar(directory("d"), member("d/low", b"low"))
ABOVE = tar(member("d/high", b"high"))


def remount(top: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", top], check=True)


async def test_a_layer_that_somebody_destroyed(storage: Storage, column: tuple[str, str]) -> None:
    """Containers of it are refused with the remedy, which works; others go on."""
    other = await storage.image(ABOVE)
    image = await storage.image(BASE, ABOVE)
    running = await storage.writable("e", other)
    lost = storage.rows.get(image.layers[-1].chain_id)
    assert lost is not None
    ground(column[0]).destroy(storage.snapshots.root, lost.number)
    await storage.reopen()
    assert sorted(map(bool, await storage.problems())) == [False, False, True]
    told = await storage.snapshots.problem(lost)
    assert "missing" in told or "does not exist" in told
    with pytest.raises(AgentError, match="criagent image fsck --repair"):
        async with storage.root(await storage.writable("a", image), image):
            pass
    with pytest.raises(AgentError, match="criagent image fsck --repair"):
        async with storage.volume(image):
            pass
    async with storage.root(running, other) as root:
        assert listed(root / "d") == {"high": "high"}
    await storage.snapshots.remove("a" * 64)
    await storage.images.delete(image.id)
    await storage.snapshots.remove(lost.key)
    await storage.snapshots.empty_trash()
    again = await storage.image(BASE, ABOVE)
    async with storage.root(await storage.writable("b", again), again) as root:
        assert listed(root / "d") == {"low": "low", "high": "high"}
    assert await storage.problems() == ["", "", ""]


@pytest.mark.long
async def test_a_store_that_turned_read_only(storage: Storage, column: tuple[str, str]) -> None:
    """As ext4 does after an error of its disk."""
    if column[0] in {"devmapper", "zfs"}:
        pytest.skip("a pool cannot be remounted; test_pools.py makes it fail")
    image = await storage.image(BASE)
    kept = await storage.writable("k", image)
    remount(storage.top, "ro")
    for fails in (storage.image(BASE, ABOVE), storage.writable("a", image)):
        with pytest.raises((AgentError, OSError), match=r"[Rr]ead-only file system"):
            await fails
    async with storage.volume(image) as volume:
        assert listed(volume / "d") == {"low": "low"}
    await storage.close()
    try:  # a driver that has nothing to write starts
        await storage.open()
        await storage.close()
    except (AgentError, OSError) as error:
        assert "read-only file system" in str(error).lower()
        storage.db.close()
    remount(storage.top, "rw")
    await storage.open()
    await storage.snapshots.remove("a" * 64)
    async with storage.root(kept, image) as root:
        assert listed(root / "d") == {"low": "low"}
    again = await storage.image(BASE, ABOVE)
    assert len(again.layers) == 2


async def test_a_root_that_is_a_file(place: tuple[str, Path]) -> None:
    driver, top = place
    (top / "snapshots").write_text("")
    storage = Storage(top, driver, top.parent)
    with pytest.raises((AgentError, OSError), match="snapshots"):
        await storage.open()
    storage.db.close()
    assert (top / "snapshots").is_file()


@pytest.mark.parametrize("driver", [name for name in KNOWN if ground(name).tools])
def test_a_program_that_is_missing(driver: str, living: Lives, tmp_path: Path) -> None:
    """The error names it and its package, whether it is noticed at start or when it is needed."""
    for program, package in ground(driver).tools.items():
        assert shutil.which(program) is not None
        with file_system(tmp_path / program, driver) as top:
            assert living.run(top, driver, without=program) == 1
            said = living.output(top).splitlines()[-1]
            assert program in said
            assert f"install {package}" in said
            assert living.run(top, driver) == 0, living.output(top)


@pytest.mark.parametrize("driver", [name for name in KNOWN if absent(name)])
async def test_a_kernel_without_the_module(driver: str, tmp_path: Path) -> None:
    """What to load or to install, or which driver to choose instead."""
    tmp_path.joinpath("disk").mkdir()
    storage = Storage(tmp_path / "disk", driver, tmp_path)
    with pytest.raises(UnsupportedError, match=r"modprobe|install"):
        await storage.open()
    storage.db.close()
