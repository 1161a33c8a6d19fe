# SPDX-License-Identifier: Apache-2.0
"""Read-only stores of other agents: their images are there, and nothing changes them."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from criagent.base.errors import WrongStateError
from criagent.config.checks import stores
from criagent.image.additional_stores import opened
from criagent.image.snapshots.numbers import split
from criagent.store.settings import SettingStore
from tests.support.image_node import ImageNode, findings
from tests.support.pulling import Registry, name

BASE, APP, OTHER = (b"%b layer " % kind * 40 for kind in (b"base", b"app", b"other"))


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    one = Registry()
    await one.start()
    one.image(BASE, APP, tags=("store",))
    yield one
    await one.stop()


async def made(top: Path, registry: Registry, driver: str = "overlay") -> Path:
    """A root directory with an image, left by its agent."""
    top.mkdir()
    node = ImageNode(top, driver=driver)
    await node.start()
    await SettingStore(node.db).put("storage.driver", driver)
    await node.pull(name(registry, "a/b:store"))
    await node.close()
    return top


@pytest.fixture(params=["overlay", "native"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, registry: Registry) -> Path:
    return await made(tmp_path / "store", registry, request.param)


@pytest.fixture
async def node(tmp_path: Path, store: Path) -> AsyncIterator[ImageNode]:
    driver = (opened([store], "overlay").stores[0].problem and "native") or "overlay"
    one = ImageNode(own(tmp_path), driver=driver, stores=(store,))
    await one.start()
    yield one
    await one.close()


def own(tmp_path: Path) -> Path:
    path = tmp_path / "own"
    path.mkdir(exist_ok=True)
    return path


def content(top: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file with its inode, time of change and content."""
    return {
        str(path.relative_to(top)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(top.rglob("*"))
        if path.is_file()
    }


async def test_its_images_are_there_and_it_is_never_written(
    registry: Registry, node: ImageNode, store: Path
) -> None:
    before = content(store)
    (image,) = node.images.all()
    assert node.images.find(name(registry, "a/b:store")) == image
    assert node.images.find(image.id) == image
    assert node.images.find(image.repo_digests[0]) == image
    assert node.images.is_pinned(image)
    assert await node.images.configuration(image)
    container = await node.snapshots.create_container(
        "c" * 64, parent=image.layers[-1].chain_id, created_at_ns=1
    )
    assert split(container.number)[0] == 0
    assert await findings(node) == []
    await node.images.prune()
    await node.snapshots.sweep()
    assert node.images.fs_usages()[0].used_bytes == 0
    await node.snapshots.remove(image.layers[0].chain_id)
    assert content(store) == before


async def test_it_cannot_be_changed_through_the_agent(registry: Registry, node: ImageNode) -> None:
    image = name(registry, "a/b:store")
    for change in (
        lambda: node.images.remove(image),
        lambda: node.images.remove_name(image),
        lambda: node.images.tag(image, "registry.test/other:1"),
    ):
        with pytest.raises(WrongStateError, match="additional store"):
            await change()
    assert len(node.images.all()) == 1


async def test_a_pull_downloads_only_what_it_lacks(registry: Registry, node: ImageNode) -> None:
    registry.image(BASE, OTHER, tags=("own",))
    registry.asked.clear()
    pulled = await node.pull(name(registry, "a/b:own"))
    assert (registry.blobs(BASE), registry.blobs(OTHER)) == (0, 1)
    assert node.layers() == {pulled.layers[1].chain_id}
    assert await findings(node) == []
    assert len(node.images.all()) == 2
    await node.images.remove(pulled.id)
    assert node.layers() == set()
    assert len(node.images.all()) == 1


async def test_the_same_image_in_both_is_listed_once(registry: Registry, node: ImageNode) -> None:
    registry.asked.clear()
    pulled = await node.pull(name(registry, "a/b:store"))
    assert registry.blobs(BASE) == registry.blobs(APP) == 0
    assert node.images.all() == [pulled]
    assert node.images.added() == []
    assert await findings(node) == []
    await node.images.remove(pulled.id)
    assert [image.id for image in node.images.added()] == [pulled.id]


async def test_what_is_damaged_in_it_is_found_and_not_repaired(
    registry: Registry, node: ImageNode, store: Path
) -> None:
    shutil.rmtree(store / "snapshots/1/fs")
    (finding,) = (await node.images.fsck(repair=True)).findings
    assert finding.object == "layer 1 of additional store 1"
    assert not finding.repaired


async def test_images_that_lost_their_store_are_restored_by_a_repair(
    registry: Registry, tmp_path: Path
) -> None:
    store = await made(tmp_path / "store", registry)
    node = ImageNode(own(tmp_path), stores=(store,))
    await node.start()
    registry.image(BASE, OTHER, tags=("own",))
    pulled = await node.pull(name(registry, "a/b:own"))
    await node.close()
    shutil.rmtree(store)
    node = ImageNode(own(tmp_path), stores=(store,))
    await node.start()
    assert len(await findings(node)) == 1
    await node.images.fsck(repair=True)
    assert await findings(node) == []
    assert node.layers() == {layer.chain_id for layer in pulled.layers}
    await node.close()


def missing(top: Path) -> None:
    shutil.rmtree(top)


def change(top: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(top / "state.db", isolation_level=None)) as db:
        db.execute(statement)


def of_another_version(top: Path) -> None:
    change(top, "PRAGMA user_version = 1")


def not_closed(top: Path) -> None:
    (top / "state.db-wal").write_bytes(b"x")


def corrupted(top: Path) -> None:
    (top / "state.db").write_bytes(b"x" * 4096)


def undecodable(top: Path) -> None:
    change(top, "UPDATE images SET body = x'00'")


def without_files(top: Path) -> None:
    shutil.rmtree(top / "snapshots")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (missing, "does not exist"),
        (of_another_version, "has schema version 1"),
        (not_closed, "start criagent with it and stop it again"),
        (corrupted, "cannot be read"),
        (undecodable, "cannot be read"),
        (without_files, "are missing"),
    ],
)
async def test_a_store_that_cannot_be_used_is_left_out(
    registry: Registry, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    bad, good = [await made(tmp_path / which, registry) for which in ("bad", "good")]
    damage(bad)
    found = opened([bad, good], "overlay")
    assert reason in found.stores[0].problem
    assert found.stores[1].problem == ""
    assert len(found.all()) == 1
    assert {split(layer.number)[0] for layer in found.layers()} == {2}
    node = ImageNode(own(tmp_path), stores=(bad, good))
    await node.start()
    assert len(node.images.all()) == 1
    await node.close()


async def test_a_store_of_another_driver_is_left_out(registry: Registry, tmp_path: Path) -> None:
    store = await made(tmp_path / "store", registry, "native")
    (found,) = opened([store], "overlay").stores
    assert "criagent storage migrate --to overlay" in found.problem
    (found,) = opened([store], "btrfs").stores
    assert "cannot use additional stores" in found.problem


@pytest.mark.parametrize("paths", [(Path("a"),), (Path("/a"), Path("/a"))])
def test_paths_are_absolute_and_each_stands_once(paths: tuple[Path, ...]) -> None:
    with pytest.raises(ValueError, match=r"absolute paths|twice"):
        stores(paths)
