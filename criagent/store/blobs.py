# SPDX-License-Identifier: Apache-2.0
"""Rows of verified blobs; the files are `image/blobs.py`'s."""

from __future__ import annotations

import sqlite3

from criagent.model.image import Blob
from criagent.store.db import Database


class BlobStore:
    """Blobs by digest."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._rows = {
            digest: Blob(digest=digest, size=size, media_type=media_type)
            for digest, size, media_type in db.read("SELECT digest, size, media_type FROM blobs")
        }

    def all(self) -> list[Blob]:
        """Every blob."""
        return list(self._rows.values())

    def has(self, digest: str) -> bool:
        """Whether the blob has a row."""
        return digest in self._rows

    async def delete(self, digest: str) -> None:
        """Forget a blob before its file is removed."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,))

        def then(_: None) -> None:
            self._rows.pop(digest, None)

        await self._db.write(change, then=then, frees=True)

    def remember(self, blob: Blob) -> None:
        """Take a committed row into the cache."""
        self._rows[blob.digest] = blob


def insert_blob(connection: sqlite3.Connection, blob: Blob) -> Blob:
    """Insert the row within the caller's transaction."""
    connection.execute(
        "INSERT OR REPLACE INTO blobs (digest, size, media_type) VALUES (?, ?, ?)",
        (blob.digest, blob.size, blob.media_type),
    )
    return blob
