# SPDX-License-Identifier: Apache-2.0
"""The store: durable before it returns, one commit per burst, refusals that change nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from criagent.base.aio import FAILURES, KeyedLocks
from criagent.base.errors import (
    AlreadyExistsError,
    CorruptError,
    ExhaustedError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from criagent.model.container import Container, ContainerId, ContainerMetadata, ContainerSpec
from criagent.model.image import Image, ImageConfig
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.runtime.container.transitions import Transitions
from criagent.store.addresses import AddressStore
from criagent.store.blobs import BlobStore
from criagent.store.containers import ContainerStore
from criagent.store.db import Database
from criagent.store.images import ImageStore
from criagent.store.sandboxes import SandboxStore
from criagent.store.settings import SettingStore
from criagent.store.snapshots import SnapshotStore


def sandbox(number: int, *, name: str = "pod") -> Sandbox:
    return Sandbox(
        id=SandboxId(f"{number:064x}"),
        spec=SandboxSpec(metadata=SandboxMetadata(name=name, uid="u", namespace="n")),
        created_at_ns=number,
        boot_id="boot",
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest_asyncio.fixture
async def db(path: Path) -> AsyncIterator[Database]:
    database = Database.open(path)
    yield database
    database.close()


@pytest.fixture
def reopened(path: Path) -> Iterator[list[Database]]:
    opened: list[Database] = []
    yield opened
    for database in opened:
        database.close()


async def test_a_row_survives_reopening(path: Path, reopened: list[Database]) -> None:
    first = Database.open(path)
    await SandboxStore(first).insert(sandbox(1))
    first.close()
    reopened.append(Database.open(path))
    assert SandboxStore(reopened[0]).all() == [sandbox(1)]


async def test_a_taken_key_is_refused_and_leaves_the_first_row(db: Database) -> None:
    store = SandboxStore(db)
    await store.insert(sandbox(1))
    with pytest.raises(AlreadyExistsError, match="pod_n_u_0"):
        await store.insert(sandbox(2))
    assert store.all() == [sandbox(1)]


async def test_one_refused_change_does_not_undo_its_neighbours(db: Database) -> None:
    store = SandboxStore(db)
    outcomes = await asyncio.gather(
        store.insert(sandbox(1, name="a")),
        store.insert(sandbox(2, name="a")),
        store.insert(sandbox(3, name="c")),
        return_exceptions=True,
    )
    assert [type(o) for o in outcomes] == [type(None), AlreadyExistsError, type(None)]
    assert {b.id for b in store.all()} == {sandbox(1).id, sandbox(3).id}


async def test_update_of_a_deleted_row_is_not_found(db: Database) -> None:
    store = SandboxStore(db)
    await store.insert(sandbox(1))
    await store.delete(sandbox(1).id)
    await store.delete(sandbox(1).id)
    with pytest.raises(NotFoundError):
        await store.update(sandbox(1))
    assert store.by_key("pod_n_u_0") is None


async def test_ids_resolve_by_unique_prefix(db: Database) -> None:
    store = SandboxStore(db)
    await store.insert(sandbox(1 << 252, name="a"))
    await store.insert(other := sandbox((1 << 252) + 1, name="b"))
    assert store.resolve(other.id) is store.get(other.id)
    with pytest.raises(InvalidRequestError, match="ambiguous"):
        store.resolve("10")
    for unknown in ("2", "", "..", "\0", "x" * 64, "1" * 64):
        with pytest.raises(NotFoundError):
            store.resolve(unknown)


async def test_a_cancelled_writer_still_updates_the_cache(db: Database) -> None:
    store = SandboxStore(db)
    task = asyncio.create_task(store.insert(sandbox(1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.all() == [sandbox(1)]


async def test_listeners_hear_commits_in_order(db: Database) -> None:
    store = SandboxStore(db)
    heard: list[tuple[str, Sandbox | None]] = []
    store.listeners.append(lambda row_id, container: heard.append((row_id, container)))
    await store.insert(sandbox(1))
    newer = dataclasses.replace(sandbox(1), ready_at_ns=5)
    await store.update(newer)
    await store.delete(newer.id)
    assert heard == [(newer.id, sandbox(1)), (newer.id, newer), (newer.id, None)]


def raiser(error: BaseException) -> Callable[[str, object], None]:
    def listen(_row_id: str, _row: object) -> None:
        raise error

    return listen


@pytest.mark.parametrize("error", [KeyError("bug"), OSError("x"), asyncio.CancelledError()])
async def test_a_listener_that_raises_harms_neither_writer_nor_other_listeners(
    db: Database, error: BaseException
) -> None:
    store, heard = SandboxStore(db), []
    store.listeners += [raiser(error), lambda _, container: heard.append(container), raiser(error)]
    before = FAILURES["listener"]
    with capture_logs() as lines:
        async with asyncio.timeout(10):
            await store.insert(sandbox(1))
            await store.update(newer := dataclasses.replace(sandbox(1), ready_at_ns=5))
            await store.delete(sandbox(1).id)
    assert heard == [sandbox(1), newer, None]
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("listener_failed", "error")
    ] * 6
    assert lines[0]["id"] == sandbox(1).id
    assert "raiser" in lines[0]["listener"]
    assert FAILURES["listener"] - before == 6


async def test_a_listener_of_images_that_raises_harms_no_writer(db: Database) -> None:
    store = ImageStore(db, SnapshotStore(db), BlobStore(db))
    store.listeners.append(raiser(KeyError("bug")))
    image = Image(id="sha256:1", manifest_digest="m", config=ImageConfig(), layers=())
    with capture_logs() as lines:
        async with asyncio.timeout(10):
            await store.put(image, [])
            await store.delete(image.id)
    assert store.all() == []
    assert [line["event"] for line in lines] == ["listener_failed"] * 2


async def test_a_row_lock_is_free_after_a_listener_that_raised(db: Database) -> None:
    store = ContainerStore(db)
    await SandboxStore(db).insert(sandbox(1))
    container = Container(
        id=ContainerId("c" * 64),
        sandbox_id=sandbox(1).id,
        spec=ContainerSpec(metadata=ContainerMetadata(name="main"), image="i"),
        created_at_ns=1,
        boot_id="boot",
        handler="crun",
    )
    store.listeners.append(raiser(KeyError("bug")))
    transitions = Transitions(store=store, locks=KeyedLocks())
    async with asyncio.timeout(10):
        await store.insert(container)
        for number in (1, 2):
            await transitions.apply(container.id, exit_code=number)
    assert store.all() == [dataclasses.replace(container, exit_code=2)]


async def test_a_writer_hears_of_a_cache_that_fails_after_the_commit(db: Database) -> None:
    def apply(_: object) -> None:
        raise KeyError("bug")

    async with asyncio.timeout(10):
        with pytest.raises(KeyError, match="bug"):
            await db.write(lambda connection: connection.execute("SELECT 1"), then=apply)


@pytest.mark.parametrize("damage", [b"", b"SQLite format 3\0", b"not a database at all" * 99])
def test_a_damaged_file_is_refused_and_left_alone(path: Path, damage: bytes) -> None:
    path.write_bytes(damage)
    with pytest.raises(CorruptError, match=r"state\.db"):
        Database.open(path)
    assert path.read_bytes() == damage


async def test_a_truncated_database_is_refused_and_left_alone(path: Path) -> None:
    database = Database.open(path)
    await SettingStore(database).put("a", "b" * 100_000)
    database.close()
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half)
    with pytest.raises(CorruptError):
        Database.open(path)
    assert path.read_bytes() == half


async def test_a_newer_schema_is_refused(path: Path) -> None:
    database = Database.open(path)
    await database.write(lambda connection: connection.execute("PRAGMA user_version = 99"))
    database.close()
    with pytest.raises(CorruptError, match="newer"):
        Database.open(path)


async def test_addresses_go_round_and_run_out(db: Database) -> None:
    store = AddressStore(db)
    networks = [ip_network("10.0.0.0/29"), ip_network("fd00::/120")]
    first = await store.allocate("a", networks)
    assert first == ("10.0.0.2", "fd00::2")
    assert await store.allocate("a", networks) == first
    await store.release("a")
    others = [await store.allocate(name, networks) for name in "bcdef"]
    assert {a[0] for a in others} == {f"10.0.0.{n}" for n in range(2, 7)}
    assert others[0][0] == "10.0.0.3"
    with pytest.raises(ExhaustedError, match=r"10\.0\.0\.0/29"):
        await store.allocate("g", networks)
    assert store.of("g") == ()
    await store.release("b")
    assert (await store.allocate("g", networks))[0] == "10.0.0.3"


async def test_a_tag_moves_to_the_newest_image(db: Database) -> None:
    store = ImageStore(db, SnapshotStore(db), BlobStore(db))

    def image(digit: str, *tags: str) -> Image:
        return Image(
            id="sha256:" + digit * 64,
            manifest_digest="",
            config=ImageConfig(),
            layers=(),
            repo_tags=tags,
        )

    await store.put(image("a", "r/x:1", "r/x:2"))
    await store.put(image("b", "r/x:1"))
    assert store.find("r/x:1") == image("b", "r/x:1")
    assert store.find("r/x:2") == image("a", "r/x:2")
    for name in ("aaaa", "a" * 64, "sha256:" + "a" * 64):
        assert store.find(name) == image("a", "r/x:2")
    merged = await store.put(image("a", "r/y:1"))
    assert merged.repo_tags == ("r/x:2", "r/y:1")
    await store.delete(merged.id)
    assert store.find("r/y:1") is None
    assert store.find("r/x:1") is not None


async def test_snapshot_numbers_are_never_used_twice(db: Database) -> None:
    store = SnapshotStore(db)
    first = await store.reserve("a")
    await store.delete("a")
    second = await store.reserve("a")
    assert second.number > first.number
    with pytest.raises(AlreadyExistsError):
        await store.reserve("a")


async def test_a_full_disk_whose_reserve_cannot_be_had_fails_every_write(db: Database) -> None:
    store = SandboxStore(db)
    await store.insert(sandbox(1))
    reserve = db._reserve

    def replace(_: object) -> None:
        reserve.unlink()
        (reserve / "below").mkdir(parents=True)  # cannot be unlinked

    await db.write(replace)  # in the thread that would fill it again
    pages = await db.write(lambda run: run.execute("PRAGMA page_count").fetchone()[0])
    await db.write(lambda run: run.execute(f"PRAGMA max_page_count = {pages}").fetchone())
    large = "CREATE TABLE large AS SELECT zeroblob(1 << 20)"
    async with asyncio.timeout(5):
        for frees in (False, True):
            with pytest.raises(ExhaustedError, match="free space"):
                await db.write(lambda run: run.execute(large), frees=frees)
    await store.delete(sandbox(1).id)


async def test_a_disk_that_fails_is_no_full_one(db: Database) -> None:
    store = SandboxStore(db)
    await store.insert(sandbox(1))
    db._connection.execute("PRAGMA query_only = 1")  # SQLITE_READONLY, as of a disk turned so
    with pytest.raises(UnavailableError, match=r"readonly.*dmesg"):
        await store.delete(sandbox(1).id)
    assert store.get(sandbox(1).id) is not None
    assert "dmesg" in await db.failure()
    db._connection.execute("PRAGMA query_only = 0")
    assert await db.failure() == ""
    await store.delete(sandbox(1).id)
