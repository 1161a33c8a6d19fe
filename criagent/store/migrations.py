# SPDX-License-Identifier: Apache-2.0
"""The schema of the state database, and the migration of older databases.

Before a database is changed to a newer schema, a copy of it is made beside it, under its name with
the old version: `state.db.v1`. An older criagent starts with that copy.
"""

from __future__ import annotations

import os
import sqlite3
from importlib import resources
from pathlib import Path


def latest() -> int:
    """The schema version that this criagent writes."""
    return len(_scripts())


def copy_name(path: Path, version: int) -> Path:
    """The path of the copy of a database of schema `version`."""
    return path.with_name(f"{path.name}.v{version}")


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the database at `path` to the latest schema, one transaction per version.

    A database that has rows is copied first. Raises sqlite3.Error and OSError; the database then
    has the schema of the last version that succeeded.
    """
    version = schema_version(connection)
    scripts = _scripts()[version:]
    if version and scripts:
        _copy(connection, copy_name(path, version))
    for number, script in enumerate(scripts, version + 1):
        connection.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")


def schema_version(connection: sqlite3.Connection) -> int:
    """The schema version of the database."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def sync_directory(path: Path) -> None:
    """Make names within the directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _copy(connection: sqlite3.Connection, target: Path) -> None:
    """A durable copy under its final name, or none."""
    temporary = target.with_name(f"{target.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        copy = sqlite3.connect(temporary)
        try:
            temporary.chmod(0o600)
            connection.backup(copy)
        finally:
            copy.close()
        fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def _scripts() -> list[str]:
    folder = resources.files("criagent.store") / "schema"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(folder / name).read_text() for name in names]
