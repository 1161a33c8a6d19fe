# SPDX-License-Identifier: Apache-2.0
"""A database outlives the version that wrote it, and one bad row does not end the start.

`tests/vectors/state-0.1.db` was written by criagent 0.1, with a value in every field of every kind
of row. It stays as it is; each later version must read all of it.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from criagent.base.errors import CorruptError, UnavailableError
from criagent.model.container import Container
from criagent.model.image import Image, Snapshot
from criagent.model.sandbox import Sandbox
from criagent.store import migrations, set_aside
from criagent.store.addresses import AddressStore
from criagent.store.blobs import BlobStore
from criagent.store.codec import VERSION, RowCodec, UndecodableError
from criagent.store.containers import ContainerStore
from criagent.store.db import Database
from criagent.store.images import ImageStore
from criagent.store.sandboxes import SandboxStore
from criagent.store.settings import SettingStore
from criagent.store.snapshots import SnapshotStore

WRITTEN_BY_0_1 = Path(__file__).parents[1] / "vectors" / "state-0.1.db"
TABLES = {"sandboxes": Sandbox, "containers": Container, "images": Image, "snapshots": Snapshot}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy of the database of 0.1."""
    shutil.copy(WRITTEN_BY_0_1, tmp_path / "state.db")
    return tmp_path / "state.db"


def rows(path: Path, query: str) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def change(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement, values)
    connection.commit()
    connection.close()


def stores(db: Database) -> tuple[SandboxStore, ContainerStore, ImageStore, SnapshotStore]:
    snapshots = SnapshotStore(db)
    return (
        SandboxStore(db),
        ContainerStore(db),
        ImageStore(db, snapshots, BlobStore(db)),
        snapshots,
    )


def contains(value: object, part: object) -> bool:
    """Whether `value` says all that `part` does."""
    if isinstance(part, dict):
        return isinstance(value, dict) and all(
            key in value and contains(value[key], item) for key, item in part.items()
        )
    if isinstance(part, list):
        return (
            isinstance(value, list) and len(value) == len(part) and all(map(contains, value, part))
        )
    return value == part


@pytest.mark.parametrize("table", TABLES)
def test_nothing_that_0_1_wrote_is_lost(table: str) -> None:
    """A field that was renamed without a decoder would come back as its default."""
    codec: RowCodec[Any] = RowCodec(TABLES[table])
    bodies = [body for (body,) in rows(WRITTEN_BY_0_1, f"SELECT body FROM {table}")]
    assert bodies
    for body in bodies:
        again = msgspec.to_builtins(codec.decode(body))
        assert contains(json.loads(msgspec.json.encode(again)), json.loads(body))


def test_a_database_of_0_1_is_opened_with_everything_in_it(path: Path) -> None:
    before = {table: rows(path, f"SELECT count(*) FROM {table}") for table in TABLES}
    db = Database.open(path)
    sandboxes, containers, images, snapshots = stores(db)
    counts = [len(one.all()) for one in (sandboxes, containers, images, snapshots)]
    assert [[(count,)] for count in counts] == list(before.values())
    (full,) = [sandbox for sandbox in sandboxes.all() if sandbox.holder]
    assert [c.sandbox_id for c in containers.of_sandbox(full.id)] == [full.id]
    assert AddressStore(db).of(full.id) == ("10.88.0.2", "fd00:88::2")
    assert SettingStore(db).get("pod-cidr") == "10.1.0.0/24"
    assert snapshots.all()[0].committed
    db.close()
    assert set_aside.count(path) == 0


async def test_rows_of_0_1_and_new_ones_live_side_by_side(path: Path) -> None:
    db = Database.open(path)
    store = SandboxStore(db)
    one, other = store.all()
    await store.update(one)
    db.close()
    bodies = dict(rows(path, "SELECT id, body FROM sandboxes"))
    assert json.loads(bodies[one.id])["v"] == VERSION
    assert "v" not in json.loads(bodies[other.id])
    db = Database.open(path)
    assert {sandbox.id: sandbox for sandbox in SandboxStore(db).all()} == {
        one.id: one,
        other.id: other,
    }
    db.close()


def test_the_former_database_is_copied_before_it_is_changed(path: Path) -> None:
    content = rows(path, "SELECT * FROM sandboxes")
    Database.open(path).close()
    copy = path.with_name("state.db.v1")
    assert rows(copy, "PRAGMA user_version") == [(1,)]
    assert rows(copy, "SELECT * FROM sandboxes") == content
    assert copy.stat().st_mode & 0o777 == 0o600
    assert rows(path, "PRAGMA user_version") == [(migrations.latest(),)]
    copy.unlink()
    Database.open(path).close()
    assert not copy.exists()  # nothing was changed, nothing is copied
    assert not list(path.parent.glob("*.new"))


def test_a_new_database_has_no_copy(tmp_path: Path) -> None:
    Database.open(tmp_path / "state.db").close()
    assert not list(tmp_path.glob("state.db.v*"))


def test_no_migration_without_a_copy(path: Path) -> None:
    path.with_name("state.db.v1.new").mkdir()  # in the way of the copy
    with pytest.raises(UnavailableError, match=r"state\.db"):
        Database.open(path)
    assert rows(path, "PRAGMA user_version") == [(1,)]


def test_the_way_back_is_said(path: Path) -> None:
    Database.open(path).close()
    change(path, f"PRAGMA user_version = {migrations.latest() + 1}")
    with pytest.raises(CorruptError, match=rf"newer.*state\.db\.v{migrations.latest()}"):
        Database.open(path)


def enum_of_tomorrow(body: bytes) -> bytes:
    row = json.loads(body)
    row["spec"]["security"]["namespaces"]["network"] = 99
    return json.dumps(row).encode()


def version_of_tomorrow(body: bytes) -> bytes:
    return b'{"v":%d,"row":%b}' % (VERSION + 1, body)


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "no JSON": lambda _: b"\xff\x00",
    "empty": lambda _: b"",
    "cut": lambda body: body[: len(body) // 2],
    "a field is missing": lambda _: b"{}",
    "an unknown value": enum_of_tomorrow,
    "a later version": version_of_tomorrow,
    "an envelope without a row": lambda _: b'{"v":2}',
    "an envelope that says more": lambda body: b'{"v":2,"more":1,"row":%b}' % body,
}


@pytest.mark.parametrize("how", BROKEN)
async def test_a_row_that_cannot_be_read_is_set_aside(
    path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (row_id, key, body) = rows(
        path, "SELECT id, key, body FROM containers WHERE key LIKE 'plain%'"
    )[0]
    broken = BROKEN[how](body)
    change(path, "UPDATE containers SET body = ? WHERE id = ?", broken, row_id)
    db = Database.open(path)
    sandboxes, containers, *_ = stores(db)
    assert len(sandboxes.all()) == 2
    assert containers.get(row_id) is None
    assert len(containers.all()) == 1
    new = RowCodec(Container).decode(body)
    await containers.insert(new)  # the name is free again
    assert containers.by_key(key) == new
    db.close()
    (saved,) = rows(path, "SELECT origin, id, columns, body FROM set_aside")
    assert (saved[0], saved[1], saved[3]) == ("containers", row_id, broken)
    assert json.loads(saved[2])["key"] == key
    assert set_aside.count(path) == 1
    assert row_id in capsys.readouterr().out


@pytest.mark.parametrize("table", TABLES)
def test_one_of_every_kind_may_be_broken(path: Path, table: str) -> None:
    before = rows(path, f"SELECT count(*) FROM {table}")[0][0]
    first = {"snapshots": "number = 1"}.get(table, f"id = (SELECT min(id) FROM {table})")
    change(path, f"UPDATE {table} SET body = x'00' WHERE {first}")
    db = Database.open(path)
    stores(db)
    db.close()
    db = Database.open(path)  # the next start finds nothing wrong
    found: list[Any] = list(stores(db))
    left = {name: store.all() for name, store in zip(TABLES, found, strict=True)}
    db.close()
    assert len(left[table]) == before - 1
    origins = [row[0] for row in rows(path, "SELECT origin FROM set_aside")]
    # A sandbox takes the containers in it along.
    assert origins == (["containers", "sandboxes"] if table == "sandboxes" else [table])
    if table == "sandboxes":
        assert len(left["containers"]) == 1


def test_a_former_version_has_a_decoder_of_its_own() -> None:
    def renamed(body: bytes) -> Snapshot:
        row = msgspec.json.decode(body)
        return Snapshot(number=row["id"], key=row["name"], committed=True)

    codec = RowCodec(Snapshot, {1: renamed})
    assert codec.decode(b'{"id":7,"name":"x"}').number == 7
    now = Snapshot(number=8, key="y", committed=False)
    assert codec.decode(codec.encode(now)) == now
    with pytest.raises(UndecodableError, match="version 99"):
        codec.decode(b'{"v":99,"row":{}}')
