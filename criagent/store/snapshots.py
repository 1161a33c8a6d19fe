# SPDX-License-Identifier: Apache-2.0
"""Snapshot rows; the directories are `image/snapshots/`'s. A row precedes its directory."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterable

from criagent.base.errors import AlreadyExistsError
from criagent.model.image import Snapshot
from criagent.store.codec import RowCodec
from criagent.store.db import Database

_CODEC = RowCodec(Snapshot)


class SnapshotStore:
    """Snapshots of one storage driver by key: chain ID of a layer, container id of a writable one.

    The one that is opened has those of the root directory's own driver, whose name is "" here;
    `of` has those of the others. All are in one table, so that no number occurs twice.
    """

    def __init__(self, db: Database, driver: str = "") -> None:
        self.driver = driver
        self._db = db
        self._rows: dict[str, Snapshot] = {}
        self._lent: dict[str, Snapshot] = {}
        self._others: dict[str, SnapshotStore] = {}
        if not driver:
            for snapshot in db.load("snapshots", _CODEC):
                self.remember(snapshot)

    def of(self, driver: str) -> SnapshotStore:
        """The snapshots of another driver, "" = these."""
        if driver == self.driver:
            return self
        if driver not in self._others:
            self._others[driver] = SnapshotStore(self._db, driver)
        return self._others[driver]

    def other_drivers(self) -> list[str]:
        """Names of the other drivers that have snapshots."""
        return [driver for driver, store in self._others.items() if store.all()]

    def all(self) -> list[Snapshot]:
        """Every snapshot of this driver in this root directory."""
        return list(self._rows.values())

    def get(self, key: str) -> Snapshot | None:
        """The snapshot of this key, or the layer that an additional store has of it."""
        return self._rows.get(key) or self._lent.get(key)

    def owned(self, key: str) -> Snapshot | None:
        """The snapshot of this key in this root directory."""
        return self._rows.get(key)

    def lend(self, layers: Iterable[Snapshot]) -> None:
        """Let `get` find these layers of additional stores too; the first of a key counts."""
        for layer in layers:
            self._lent.setdefault(layer.key, layer)

    def lent(self) -> list[Snapshot]:
        """The layers of additional stores."""
        return list(self._lent.values())

    async def reserve(self, key: str, *, parent: str = "", created_at_ns: int = 0) -> Snapshot:
        """A new uncommitted row with its own number. Raises AlreadyExistsError."""

        def change(connection: sqlite3.Connection) -> Snapshot:
            done = connection.execute(
                "INSERT INTO snapshots (key, body) VALUES (?, ?)", (self._name(key), b"")
            )
            snapshot = Snapshot(
                number=int(done.lastrowid or 0),
                key=key,
                committed=False,
                parent=parent,
                created_at_ns=created_at_ns,
                driver=self.driver,
            )
            return update_snapshot(connection, snapshot)

        try:
            return await self._db.write(change, then=self.remember)
        except sqlite3.IntegrityError as exc:
            raise AlreadyExistsError(f"snapshot {key!r} exists") from exc

    async def rename(self, key: str, new: str) -> None:
        """Give the snapshot another key, so that its own is free; it keeps its directory."""
        snapshot = dataclasses.replace(self._rows[key], key=new)

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE snapshots SET key = ?, body = ? WHERE number = ?",
                (self._name(new), _CODEC.encode(snapshot), snapshot.number),
            )

        def then(_: None) -> None:
            del self._rows[key]
            self.remember(snapshot)

        await self._db.write(change, then=then, frees=True)

    async def delete(self, key: str) -> None:
        """Delete the snapshot; no effect when it does not exist."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM snapshots WHERE key = ?", (self._name(key),))

        def then(_: None) -> None:
            self._rows.pop(key, None)

        await self._db.write(change, then=then, frees=True)

    def remember(self, snapshot: Snapshot) -> None:
        """Take a committed row of any driver into the cache."""
        if snapshot.driver != self.driver:
            self.of(snapshot.driver).remember(snapshot)
        else:
            self._rows[snapshot.key] = snapshot

    def _name(self, key: str) -> str:
        """The unique key in the table: drivers may have the same layer each."""
        return f"{self.driver} {key}" if self.driver else key


def update_snapshot(connection: sqlite3.Connection, snapshot: Snapshot) -> Snapshot:
    """Write the row within the caller's transaction."""
    connection.execute(
        "UPDATE snapshots SET body = ? WHERE number = ?",
        (_CODEC.encode(snapshot), snapshot.number),
    )
    return snapshot
