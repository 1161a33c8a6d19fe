"""Snapshot rows; the directories are `image/snapshots/`'s. A row precedes its directory."""

from __future__ import annotations

import dataclasses
import sqlite3

import msgspec

from criagent.errors import AlreadyExistsError
from criagent.model import Snapshot
from criagent.store.db import Database


class SnapshotStore:
    """Snapshots by key: chain ID of a layer, container id of a writable one."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._rows: dict[str, Snapshot] = {}
        for (body,) in db.read("SELECT body FROM snapshots"):
            self.remember(msgspec.json.decode(body, type=Snapshot))

    def all(self) -> list[Snapshot]:
        """Every snapshot."""
        return list(self._rows.values())

    def get(self, key: str) -> Snapshot | None:
        """The snapshot of this key."""
        return self._rows.get(key)

    async def reserve(self, key: str, *, parent: str = "", created_at_ns: int = 0) -> Snapshot:
        """A new uncommitted row with a number of its own. Raises AlreadyExistsError."""

        def change(connection: sqlite3.Connection) -> Snapshot:
            done = connection.execute("INSERT INTO snapshots (key, body) VALUES (?, ?)", (key, b""))
            snapshot = Snapshot(
                number=int(done.lastrowid or 0),
                key=key,
                committed=False,
                parent=parent,
                created_at_ns=created_at_ns,
            )
            return update_snapshot(connection, snapshot)

        try:
            return await self._db.write(change, then=self.remember)
        except sqlite3.IntegrityError as exc:
            raise AlreadyExistsError(f"snapshot {key!r} exists") from exc

    async def update(self, snapshot: Snapshot) -> None:
        """Replace the row of the same number."""
        await self._db.write(lambda c: update_snapshot(c, snapshot), then=self.remember)

    async def commit(self, snapshot: Snapshot) -> Snapshot:
        """Mark a layer complete; its directory is synced before."""
        done = dataclasses.replace(snapshot, committed=True)
        await self.update(done)
        return done

    async def delete(self, key: str) -> None:
        """Forget the snapshot; nothing happens when it is gone."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM snapshots WHERE key = ?", (key,))

        def then(_: None) -> None:
            self._rows.pop(key, None)

        await self._db.write(change, then=then, frees=True)

    def remember(self, snapshot: Snapshot) -> None:
        """Take a committed row into the cache."""
        self._rows[snapshot.key] = snapshot


def update_snapshot(connection: sqlite3.Connection, snapshot: Snapshot) -> Snapshot:
    """Write the row within somebody's transaction."""
    connection.execute(
        "UPDATE snapshots SET body = ? WHERE number = ?",
        (msgspec.json.encode(snapshot), snapshot.number),
    )
    return snapshot
