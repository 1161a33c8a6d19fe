# SPDX-License-Identifier: Apache-2.0
"""A table of whole objects with a complete cache: the base of sandboxes and containers."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from criagent.base.errors import AlreadyExistsError, InvalidRequestError, NotFoundError
from criagent.model.common import ID_PATTERN
from criagent.store.codec import RowCodec
from criagent.store.db import Database
from criagent.store.listeners import notify


class Row(Protocol):
    """What a stored object must have."""

    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Row)


class RowStore(Generic[R]):
    """Objects of one table. Reads are from memory; a write returns when it is durable.

    `listeners` are called with (id, new value or None) on the loop right after each commit; one
    that raises is logged and affects no other.
    """

    noun: str
    table: str

    def __init__(self, db: Database, kind: type[R], key: Callable[[R], str]) -> None:
        self._db = db
        self._key = key
        self._ids_by_key: dict[str, str] = {}
        self._rows: dict[str, R] = {}
        self.listeners: list[Callable[[str, R | None], None]] = []
        self._codec = RowCodec(kind)
        for row in db.load(self.table, self._codec):
            self._remember(row)

    def all(self) -> list[R]:
        """Every object, in no order."""
        return list(self._rows.values())

    def get(self, row_id: str) -> R | None:
        """The object of exactly this id."""
        return self._rows.get(row_id)

    def by_key(self, key: str) -> R | None:
        """The object that holds the unique name `key`."""
        row_id = self._ids_by_key.get(key)
        return None if row_id is None else self._rows[row_id]

    def resolve(self, prefix: str) -> R:
        """The object of this id or unique id prefix.

        Raises NotFoundError, and InvalidRequestError when several ids begin with it.
        """
        if (row := self._rows.get(prefix)) is not None:
            return row
        if not prefix or len(prefix) >= 64 or ID_PATTERN.match(prefix.ljust(64, "0")) is None:
            raise NotFoundError(f"{self.noun} {prefix[:80]!r} not found")
        found = [row for row_id, row in self._rows.items() if row_id.startswith(prefix)]
        if not found:
            raise NotFoundError(f"{self.noun} {prefix!r} not found")
        if len(found) > 1:
            raise InvalidRequestError(f"{self.noun} id prefix {prefix!r} is ambiguous")
        return found[0]

    async def insert(self, row: R) -> None:
        """Add a new object. Raises AlreadyExistsError when its key is taken."""
        body = self._codec.encode(row)

        def change(connection: sqlite3.Connection) -> None:
            self._insert(connection, row, body)

        try:
            await self._db.write(change, then=lambda _: self._committed(row))
        except sqlite3.IntegrityError as exc:
            raise AlreadyExistsError(f"{self.noun} name {self._key(row)!r} is taken") from exc

    async def update(self, row: R) -> None:
        """Replace the object of the same id. Raises NotFoundError when it no longer exists."""
        body = self._codec.encode(row)

        def change(connection: sqlite3.Connection) -> None:
            done = connection.execute(
                f"UPDATE {self.table} SET body = ? WHERE id = ?",  # noqa: S608
                (body, row.id),
            )
            if not done.rowcount:
                raise NotFoundError(f"{self.noun} {row.id!r} not found")

        # Exits and stops must get written on a full disk; only new objects are refused there.
        await self._db.write(change, then=lambda _: self._committed(row), frees=True)

    async def delete(self, row_id: str) -> None:
        """Delete the object; no effect when it does not exist."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(f"DELETE FROM {self.table} WHERE id = ?", (row_id,))  # noqa: S608

        await self._db.write(change, then=lambda _: self._forget(row_id), frees=True)

    def _insert(self, connection: sqlite3.Connection, row: R, body: bytes) -> None:
        connection.execute(
            f"INSERT INTO {self.table} (id, key, body) VALUES (?, ?, ?)",  # noqa: S608
            (row.id, self._key(row), body),
        )

    def _remember(self, row: R) -> None:
        self._rows[row.id] = row
        self._ids_by_key[self._key(row)] = row.id

    def _committed(self, row: R) -> None:
        self._remember(row)
        notify(self.listeners, row.id, row)

    def _forget(self, row_id: str) -> None:
        row = self._rows.pop(row_id, None)
        if row is None:
            return
        del self._ids_by_key[self._key(row)]
        notify(self.listeners, row_id, None)
