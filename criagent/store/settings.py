# SPDX-License-Identifier: Apache-2.0
"""Named texts that must survive a restart, such as the pod CIDR from the kubelet."""

from __future__ import annotations

import sqlite3

from criagent.store.db import Database


class SettingStore:
    """Settings by name, read once."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._values: dict[str, str] = dict(db.read("SELECT name, value FROM settings"))

    def get(self, name: str) -> str | None:
        """The last value of `name`."""
        return self._values.get(name)

    async def put(self, name: str, value: str) -> None:
        """Store `value` under `name`."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (name, value)
            )

        def then(_: None) -> None:
            self._values[name] = value

        await self._db.write(change, then=then)
