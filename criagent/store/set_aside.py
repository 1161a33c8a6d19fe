# SPDX-License-Identifier: Apache-2.0
"""Rows that this version cannot decode: removed from their table, but never deleted.

They go to the table `set_aside` with the reason. Their objects are unknown from then on: recovery
ends a container that has no row, and an image is pulled again.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from criagent.store.codec import RowCodec, UndecodableError

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def load(connection: sqlite3.Connection, table: str, codec: RowCodec[T]) -> list[T]:
    """The rows of `table`; those that cannot be decoded are set aside and reported in the log."""
    rows, broken = [], []
    for key, body in connection.execute(f"SELECT {_key(table)}, body FROM {table}").fetchall():  # noqa: S608
        try:
            rows.append(codec.decode(body))
        except UndecodableError as exc:
            broken.append((key, str(exc)))
    for key, reason in broken:
        log.error("row_set_aside", table=table, id=key, reason=reason)
        try:
            _move(connection, table, key, reason)
        except sqlite3.Error as exc:  # such as a full disk; the next start tries again
            log.warning("row_not_set_aside", table=table, id=key, error=str(exc))
    return rows


def count(path: Path) -> int:
    """How many rows of the database at `path` were set aside; 0 when it cannot be read."""
    with contextlib.suppress(sqlite3.Error):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            (number,) = connection.execute("SELECT count(*) FROM set_aside").fetchone()
            return int(number)
        finally:
            connection.close()
    return 0


def _move(connection: sqlite3.Connection, table: str, key: object, reason: str) -> None:
    with _transaction(connection):
        if table == "sandboxes":  # its containers cannot remain without it
            query = "SELECT id FROM containers WHERE sandbox_id = ?"
            for (container_id,) in connection.execute(query, (key,)).fetchall():
                why = f"its sandbox {key} was set aside"
                log.error("row_set_aside", table="containers", id=container_id, reason=why)
                _move_one(connection, "containers", container_id, why)
        _move_one(connection, table, key, reason)


def _move_one(connection: sqlite3.Connection, table: str, key: object, reason: str) -> None:
    cursor = connection.execute(f"SELECT * FROM {table} WHERE {_key(table)} = ?", (key,))  # noqa: S608
    names: Sequence[str] = [column[0] for column in cursor.description]
    columns = dict(zip(names, cursor.fetchone(), strict=True))
    body = columns.pop("body")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    connection.execute(
        "INSERT INTO set_aside (origin, id, columns, body, reason, at) VALUES (?, ?, ?, ?, ?, ?)",
        (table, str(key), json.dumps(columns), body, reason, now),
    )
    connection.execute(f"DELETE FROM {table} WHERE {_key(table)} = ?", (key,))  # noqa: S608


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _key(table: str) -> str:
    return "number" if table == "snapshots" else "id"
