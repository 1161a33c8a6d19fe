# SPDX-License-Identifier: Apache-2.0
"""Rows of security profiles from registries. A profile and its blobs become visible together."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from criagent.base.errors import CorruptError
from criagent.model.image import Blob, PulledProfile
from criagent.store.blobs import BlobStore, insert_blob
from criagent.store.codec import RowCodec, UndecodableError
from criagent.store.db import Database

_CODEC = RowCodec(PulledProfile)


def stored_profiles(path: Path) -> list[PulledProfile]:
    """The profiles of the database at `path`, which an agent may be using; none without a database.

    Raises CorruptError when it cannot be read.
    """
    try:
        if not path.exists():
            return []
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            rows = connection.execute("SELECT body FROM security_profiles ORDER BY id").fetchall()
        return [_CODEC.decode(body) for (body,) in rows]
    except (OSError, sqlite3.Error, UndecodableError) as exc:
        raise CorruptError(f'the security profiles in "{path}" cannot be read: {exc}') from exc


class ProfileStore:
    """Security profiles by the digest of their manifest."""

    def __init__(self, db: Database, blobs: BlobStore) -> None:
        self._db = db
        self._blobs = blobs
        self._rows = {row.digest: row for row in db.load("security_profiles", _CODEC)}

    def all(self) -> list[PulledProfile]:
        """Every profile, in no order."""
        return list(self._rows.values())

    def get(self, digest: str) -> PulledProfile | None:
        """The profile whose manifest has this digest."""
        return self._rows.get(digest)

    async def put(self, profile: PulledProfile, blobs: Sequence[Blob]) -> None:
        """Add the profile with its blobs, or its references to those of the one that is there."""

        def change(connection: sqlite3.Connection) -> PulledProfile:
            for blob in blobs:
                insert_blob(connection, blob)
            return _merged(connection, profile)

        def then(row: PulledProfile) -> None:
            for blob in blobs:
                self._blobs.remember(blob)
            self._rows[row.digest] = row

        await self._db.write(change, then=then)

    async def refer(self, digest: str, ref: str) -> bool:
        """Add a reference to the profile; False when there is no such profile."""

        def change(connection: sqlite3.Connection) -> PulledProfile | None:
            row = _read(connection, digest)
            return (
                None if row is None else _merged(connection, dataclasses.replace(row, refs=(ref,)))
            )

        def then(row: PulledProfile | None) -> None:
            if row is not None:
                self._rows[digest] = row

        known = self._rows.get(digest)
        if known is not None and ref in known.refs:
            return True
        return await self._db.write(change, then=then) is not None

    async def delete(self, digest: str) -> None:
        """Forget the profile; no effect when there is none."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM security_profiles WHERE id = ?", (digest,))

        await self._db.write(change, then=lambda _: self._forget(digest), frees=True)

    def _forget(self, digest: str) -> None:
        self._rows.pop(digest, None)


def _read(connection: sqlite3.Connection, digest: str) -> PulledProfile | None:
    query = "SELECT body FROM security_profiles WHERE id = ?"
    found = connection.execute(query, (digest,)).fetchone()
    return None if found is None else _CODEC.decode(found[0])


def _merged(connection: sqlite3.Connection, profile: PulledProfile) -> PulledProfile:
    old = _read(connection, profile.digest)
    refs = {*profile.refs, *(() if old is None else old.refs)}
    row = dataclasses.replace(profile, refs=tuple(sorted(refs)))
    connection.execute(
        "INSERT OR REPLACE INTO security_profiles (id, body) VALUES (?, ?)",
        (row.digest, _CODEC.encode(row)),
    )
    return row
