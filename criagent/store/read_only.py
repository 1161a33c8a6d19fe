# SPDX-License-Identifier: Apache-2.0
"""The rows of a root directory that nobody writes to, such as one on a read-only file system."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from criagent.base.errors import CorruptError, NotFoundError, WrongStateError
from criagent.model.image import Image, Snapshot
from criagent.store import migrations
from criagent.store.codec import RowCodec, UndecodableError


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImages:
    """What the database says of images and committed layers, and the setting `storage.driver`."""

    driver: str
    images: Sequence[Image]
    layers: Sequence[Snapshot]


def stored_images(path: Path) -> StoredImages:
    """Read the database at `path` without a lock or a journal (SQLite's immutable=1).

    Raises NotFoundError, WrongStateError for one that was not closed or is of another schema, and
    CorruptError.
    """
    if not path.exists():
        raise NotFoundError(f'"{path}" does not exist; mount the store, or import images there')
    wal = path.with_name(f"{path.name}-wal")
    if wal.exists() and wal.stat().st_size:
        raise WrongStateError(
            f'"{wal}" has changes that are not in the database: an agent uses the directory, or '
            "was killed; start criagent with it and stop it again before it becomes a store"
        )
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            return _read(connection, path)
    except (sqlite3.Error, UndecodableError) as exc:
        raise CorruptError(f'"{path}" cannot be read ({exc}); make the store again') from exc


def _read(connection: sqlite3.Connection, path: Path) -> StoredImages:
    version = migrations.schema_version(connection)
    if version != migrations.latest():
        raise WrongStateError(
            f'"{path}" has schema version {version}, and this criagent has '
            f"{migrations.latest()}; start and stop this criagent with the directory once, before "
            "it becomes a store"
        )
    driver = connection.execute(
        "SELECT value FROM settings WHERE name = 'storage.driver'"
    ).fetchone()
    images, snapshots = RowCodec(Image), RowCodec(Snapshot)
    return StoredImages(
        driver=driver[0] if driver else "overlay",
        images=[images.decode(body) for (body,) in connection.execute("SELECT body FROM images")],
        layers=[
            row
            for (body,) in connection.execute("SELECT body FROM snapshots WHERE body != x''")
            if (row := snapshots.decode(body)).committed and not row.driver
        ],
    )
