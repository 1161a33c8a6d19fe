# SPDX-License-Identifier: Apache-2.0
"""Which storage driver a root directory gets, and how images are written by the one that copies."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from criagent.base.errors import CorruptError, UnavailableError, UnsupportedError
from criagent.config.storage_drivers import KNOWN
from criagent.image.snapshots.containers_root import ID_FILE, Claim, ContainersRoot, take
from criagent.image.snapshots.drivers.available import chosen, driver
from criagent.image.snapshots.drivers.limited import named_ids
from criagent.image.snapshots.mounted import elsewhere
from criagent.image.snapshots.traces import traces
from criagent.kernel.mount import MountEntry
from tests.support.image_node import ImageNode, findings, until, until_idle
from tests.support.pulling import Registry, digest, name

BASE, APP, OTHER = (b"%b layer " % kind * 40 for kind in (b"base", b"app", b"other"))
ROOT = Path("/var/lib/criagent")


def test_the_configuration_knows_the_drivers_that_there_are() -> None:
    assert {driver(name).name for name in KNOWN} == set(KNOWN)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("configured", "remembered", "name"),
    [
        ("auto", "", "overlay"),
        ("auto", "native", "native"),
        ("overlay2", "", "overlay"),
        ("overlayfs", "overlay", "overlay"),
        ("native", "", "native"),
        ("native", "native", "native"),
    ],
)
def test_the_driver_of_a_root(configured: str, remembered: str, name: str) -> None:
    assert chosen(configured, remembered, ROOT) == name


def test_a_root_of_another_driver_is_refused_with_the_cure() -> None:
    with pytest.raises(UnsupportedError) as caught:
        chosen("native", "overlay", ROOT)
    text = str(caught.value)
    assert 'set storage.driver = "overlay"' in text
    assert "set another storage.root" in text
    assert "criagent storage migrate --to native" in text


def test_a_root_of_a_driver_that_this_version_lacks_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="this version does not have it"):
        chosen("auto", "punched-cards", ROOT)


@pytest.mark.parametrize(
    ("files", "drivers"),
    [
        ((), ()),
        (("snapshots/trash/1/fs/", "snapshots/empty/"), ()),
        (("snapshots/1/fs/",), ("overlay", "native")),
        (("snapshots/1/fs/", "snapshots/2/image.json"), ("erofs",)),
        (("snapshots/1/fs/", "snapshots/1/count.json"), ("fuse-overlayfs",)),
        (("snapshots/7/volume",), ("devmapper",)),
        (("snapshots/pool",), ("devmapper",)),
        (("snapshots.zfs", "snapshots/"), ("zfs",)),
    ],
)
def test_layers_that_no_database_knows_show_their_driver(
    tmp_path: Path, files: tuple[str, ...], drivers: tuple[str, ...]
) -> None:
    for file in files:
        place = tmp_path / file
        (place if file.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if not file.endswith("/"):
            place.touch()
    assert traces(tmp_path) == drivers
    assert chosen("auto", "", tmp_path, drivers) == (drivers[0] if drivers else "overlay")


def test_layers_of_a_lost_database_are_left_to_their_driver() -> None:
    with pytest.raises(UnsupportedError) as caught:
        chosen("native", "", ROOT, ("erofs",))
    text = str(caught.value)
    assert f"restore {ROOT}/state.db" in text
    assert 'set storage.driver = "erofs"' in text
    assert "another storage.root" in text
    assert chosen("native", "", ROOT, ("overlay", "native")) == "native"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ImageNode]:
    one = ImageNode(tmp_path, driver="native")
    await one.start()
    yield one
    await one.close()


async def test_copies_are_written_upwards_while_the_rest_arrives(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(BASE, OTHER, APP)
    node.workers.held = {digest(BASE)}
    task = asyncio.create_task(node.pull(name(registry)))
    await until(lambda: registry.blobs(APP) == 1)
    await node.workers.entered.wait()
    assert node.workers.extracted == [digest(BASE)]
    node.workers.release.set()
    await task
    assert node.workers.extracted == [digest(BASE), digest(OTHER), digest(APP)]
    assert await findings(node) == []


async def test_each_layer_has_the_files_below_it(registry: Registry, node: ImageNode) -> None:
    registry.image(BASE, tags=("base",))
    base = await node.pull(name(registry, "a/b:base"))
    (below,) = node.snapshots.store.all()
    (node.tree(below) / "more").write_text("of the base")
    registry.image(BASE, APP, tags=("app",))
    image = await node.pull(name(registry, "a/b:app"))
    assert image.layers[0] == base.layers[0]
    above = node.snapshots.store.get(image.layers[1].chain_id)
    assert above is not None
    assert (node.tree(above) / "more").read_text() == "of the base"
    assert (node.tree(below) / "content").read_bytes() == BASE


async def test_a_copy_that_fails_leaves_nothing(registry: Registry, node: ImageNode) -> None:
    registry.image(BASE, APP)
    node.workers.failure = CorruptError("not a layer")
    with pytest.raises(CorruptError, match="not a layer"):
        await node.pull(name(registry))
    assert node.snapshots.store.all() == []
    assert list(node.snapshots.root.glob("[0-9]*")) == []
    node.workers.failure = None
    await node.pull(name(registry))
    assert await findings(node) == []


async def test_a_cancelled_pull_leaves_its_copies_to_the_other(
    registry: Registry, node: ImageNode
) -> None:
    registry.image(BASE, OTHER, tags=("1",))
    registry.image(BASE, APP, tags=("2",))
    node.workers.held = {digest(BASE)}
    first = asyncio.create_task(node.pull(name(registry, "a/b:1")))
    await node.workers.entered.wait()
    second = asyncio.create_task(node.pull(name(registry, "a/b:2")))
    await until(lambda: registry.blobs(APP) == 1)
    node.workers.held.clear()
    first.cancel()
    image = await second
    await until_idle(node)
    assert node.layers() == {layer.chain_id for layer in image.layers}
    assert await findings(node) == []


def test_ids_of_the_operators_projects_are_left_alone(tmp_path: Path) -> None:
    assert named_ids(tmp_path) == frozenset()
    (tmp_path / "projects").write_text("# id:path\n42:/srv/one\n43:/srv/two\n\nbroken\n")
    (tmp_path / "projid").write_text("one:42\nthree: 44\nnobody\nx:y\n#four:45\n")
    assert named_ids(tmp_path) == {42, 43, 44}


def mounted(target: Path, **fields: object) -> MountEntry:
    facts: dict[str, object] = {"root": "/", "fstype": "ext4", "source": "/dev/sda", **fields}
    return MountEntry(target=str(target), options=frozenset(), tags=(), **facts)  # type: ignore[arg-type]


def test_files_of_an_overlay_are_where_its_upper_directory_is(tmp_path: Path) -> None:
    own, other = "/own/snapshots/1/fs", "/other/snapshots/1/fs"
    entries = [
        mounted(tmp_path, fstype="overlay", super_options=("lowerdir=/x", f"upperdir={upper}"))
        for upper in (own, other)
    ]
    assert [elsewhere(entry, Path("/own")) for entry in entries] == ["", other]
    assert elsewhere(mounted(tmp_path, fstype="overlay"), Path("/own")) == ""


@pytest.mark.parametrize("fstype", ["ext4", "overlay"])
def test_files_of_a_bind_mount_are_found_by_their_directory(tmp_path: Path, fstype: str) -> None:
    """On an overlay too: the mount table shows the upper directory of that one."""
    places = [tmp_path / f"snapshots/{name}/fs" for name in ("5", "trash/6", "7/disk", "disks/8")]
    for place in places:
        place.mkdir(parents=True)
    facts = {"root": "/a/5/fs", "fstype": fstype, "super_options": ("upperdir=/disk/upper",)}
    for target in places:
        assert elsewhere(mounted(target, **facts), tmp_path) == ""
        assert elsewhere(mounted(target, **facts), tmp_path / "other") == "/a/5/fs of /dev/sda"
    assert elsewhere(mounted(tmp_path / "gone", **facts), tmp_path) == ""


def test_the_program_behind_a_mount_names_its_upper_directory(tmp_path: Path) -> None:
    entry = mounted(tmp_path, fstype="fuse.fuse-overlayfs", source="fuse-overlayfs")
    assert elsewhere(entry, Path("/own")) == ""
    options = "lowerdir=/other/snapshots/1/fs,upperdir=/other/snapshots/2/fs"
    argv = ["fuse-overlayfs", "-c", "echo; read end", "-o", options, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, executable="/bin/sh", stdin=pipe, stdout=pipe) as program:
        assert program.stdout is not None
        program.stdout.readline()  # it runs
        assert elsewhere(entry, Path("/own")) == "/other/snapshots/2/fs"
        assert elsewhere(entry, Path("/other")) == ""
        program.communicate(b"\n")


def claimed(root: Path, place: Path, remembered: str, users: int = 0) -> ContainersRoot:
    found = take(Claim.of(remembered, str(place), users=users), root)
    found.mark()
    return found


def test_a_directory_of_containers_is_known_by_its_id(tmp_path: Path) -> None:
    place = tmp_path / "apart"
    first = claimed(ROOT, place, "")
    with pytest.raises(UnavailableError, match="another criagent serves"):
        claimed(ROOT, place, first.remembered)
    first.close()
    second = claimed(ROOT, place, first.remembered, users=3)
    assert second.remembered == first.remembered
    second.close()
    with pytest.raises(UnavailableError, match=f"agent with storage.root {ROOT};"):
        claimed(Path("/other"), place, "")
    (place / ID_FILE).unlink()
    with pytest.raises(UnavailableError, match="3 containers have their writable layers") as caught:
        claimed(ROOT, place, first.remembered, users=3)
    assert f"`echo {first.remembered.split()[0]} > {place / ID_FILE}`" in str(caught.value)
    assert list(place.iterdir()) == []
    claimed(ROOT, place, first.remembered).close()  # nothing can be lost: it is marked again


@pytest.mark.parametrize(("remembered", "wanted"), [("", "/new"), ("id /old", ""), ("id /a", "/b")])
def test_another_directory_of_containers_waits_for_the_last_of_them(
    remembered: str, wanted: str
) -> None:
    with pytest.raises(UnsupportedError, match="crictl rmp -a -f"):
        Claim.of(remembered, wanted, users=1)
    assert Claim.of(remembered, wanted, users=0).place == wanted


def test_a_start_that_was_killed_leaves_an_empty_id_file(tmp_path: Path) -> None:
    (tmp_path / ID_FILE).touch()
    claimed(ROOT, tmp_path, "").close()
    assert (tmp_path / ID_FILE).read_text().splitlines()[1] == str(ROOT)
