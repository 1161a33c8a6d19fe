# SPDX-License-Identifier: Apache-2.0
"""The state database: SQLite in WAL mode with synchronous=FULL, one connection, one thread.

Writers queue changes; the thread drains the queue into one transaction with a savepoint each, so
that a burst shares its fsync. A change is durable and visible in the caches when `write` returns.
The file is created under another name and renamed, so an empty or short file is always damage.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from criagent.base import memory
from criagent.base.aio import Outcome
from criagent.base.errors import AgentError, CorruptError, ExhaustedError, UnavailableError
from criagent.process.priority import pool
from criagent.store import migrations, set_aside
from criagent.store.codec import RowCodec

T = TypeVar("T")

_APPLICATION_ID = 0x63726961  # "cria", to recognise databases of other programs
_RESERVE_BYTES = 1 << 20  # released when a removal needs space on a full disk
_OF_DISKS = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
}


@dataclass(frozen=True, slots=True)
class _Pending:
    change: Callable[[sqlite3.Connection], Any]
    then: Callable[[Any], None] | None
    frees: bool
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class Database:
    """The open state database. Reads happen once, at construction of the stores."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._reserve = path.with_name("state.reserve")
        self._thread = pool(1, "db")
        self._lock = threading.Lock()
        self._queue: list[_Pending] = []
        self._failure = ""
        self._fill_reserve()

    @classmethod
    def open(cls, path: Path) -> Database:
        """Open or create the database at `path` and migrate it to this version's schema.

        A database of an older schema is copied beforehand (`migrations`). Raises CorruptError for a
        damaged, foreign or newer file, and UnavailableError when it cannot be written or copied;
        the file is left unchanged.
        """
        if not path.exists():
            with _writable(path):
                _create(path)
        connection = _connect(path)
        try:
            _check(connection, path)
            _configure(connection)
        except sqlite3.DatabaseError as exc:
            connection.close()
            raise CorruptError(
                f'state database "{path}" cannot be read ({exc}); restore it from a '
                "backup, or move it away and restart criagent: it then ends every container "
                "of its own that still runs, and the kubelet creates the pods again"
            ) from exc
        except CorruptError:
            connection.close()
            raise
        try:
            with _writable(path):
                migrations.migrate(connection, path)
        except BaseException:
            connection.close()
            raise
        return cls(connection, path)

    def read(self, query: str, *values: object) -> list[Any]:
        """Rows of `query`; for loading the caches before the first write."""
        return self._connection.execute(query, values).fetchall()

    def load(self, table: str, codec: RowCodec[T]) -> list[T]:
        """Every row of a table of bodies that can be decoded; before the first write.

        The others are set aside (`set_aside`), with an error in the log for each.
        """
        return set_aside.load(self._connection, table, codec)

    async def write(
        self,
        change: Callable[[sqlite3.Connection], T],
        *,
        then: Callable[[T], None] | None = None,
        frees: bool = False,
    ) -> T:
        """Run `change` in the next transaction; return its result when it is on disk.

        `then` runs on the loop once the commit is done, also when the caller was cancelled.
        `frees` marks a removal: on a full disk it may use up the reserve.
        Raises what `change` raises (only it is undone), ExhaustedError when the disk is full,
        UnavailableError when it fails.
        """
        loop = asyncio.get_running_loop()
        outcome: Outcome[T] = Outcome(loop=loop)
        pending = _Pending(change, then, frees, loop, outcome)
        with self._lock:
            self._queue.append(pending)
            first = len(self._queue) == 1
        if first:
            self._thread.submit(self._drain_or_end)
        return await outcome.whole()

    @property
    def waiting(self) -> int:
        """The number of writes that wait for a commit."""
        return len(self._queue)

    async def failure(self) -> str:
        """Why writing to a failing disk is impossible; "" = it is possible, or the disk is only
        full.

        After a failure each call tries again.
        """
        if self._failure:
            with contextlib.suppress(AgentError):
                await self.write(_rewrite_first_page)
        return self._failure

    def close(self) -> None:
        """Finish queued writes and close; later writes fail."""
        self._thread.shutdown()
        self._connection.close()

    def _drain_or_end(self) -> None:
        try:
            self._drain()
        except MemoryError as exc:  # those who wait would never be told
            memory.end_without(exc, "the database's thread")

    def _drain(self) -> None:
        with self._lock:
            batch, self._queue = self._queue, []
        outcomes = self._commit(batch)
        if any(_is_full(o) for o in outcomes) and any(p.frees for p in batch):
            self._give_reserve_up()
            outcomes = self._commit(batch)
        translated = [_translate(outcome, self._reserve.parent) for outcome in outcomes]
        self._failure = next((str(t) for t in translated if isinstance(t, UnavailableError)), "")
        for pending, what in zip(batch, translated, strict=True):
            pending.loop.call_soon_threadsafe(_settle, pending, what)
        if not self._reserve.exists():
            self._fill_reserve()

    def _commit(self, batch: list[_Pending]) -> list[Any]:
        """One outcome per change: its result, or the exception it failed with."""
        run = self._connection.execute
        try:
            run("BEGIN IMMEDIATE")
            if len(batch) == 1:
                return [self._only(batch[0])]
            outcomes = [self._savepoint(pending) for pending in batch]
            run("COMMIT")
        except sqlite3.Error as exc:
            with contextlib.suppress(sqlite3.Error):
                run("ROLLBACK")
            return [exc] * len(batch)
        return outcomes

    def _only(self, pending: _Pending) -> Any:
        """As `_savepoint`, for a change that has the transaction for itself; ends it."""
        run = self._connection.execute
        try:
            outcome = pending.change(self._connection)
        except sqlite3.OperationalError:
            raise
        except Exception as exc:  # noqa: BLE001 - passed to the caller whose change it was
            run("ROLLBACK")
            return exc
        run("COMMIT")
        return outcome

    def _savepoint(self, pending: _Pending) -> Any:
        run = self._connection.execute
        run("SAVEPOINT one")
        try:
            outcome = pending.change(self._connection)
        except sqlite3.OperationalError:
            raise  # a full disk or the like: SQLite may have rolled the whole transaction back
        except Exception as exc:  # noqa: BLE001 - passed to the one caller whose change it was
            run("ROLLBACK TO one")
            outcome = exc
        run("RELEASE one")
        return outcome

    def _fill_reserve(self) -> None:
        if self._reserve.exists():
            return
        try:
            fd = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, _RESERVE_BYTES)
            finally:
                os.close(fd)
        except OSError:
            self._give_reserve_up()  # the disk is full; the next commit tries again

    def _give_reserve_up(self) -> None:
        with contextlib.suppress(OSError):  # a disk that fails, or has become read-only
            self._reserve.unlink()


def _rewrite_first_page(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.execute(f"PRAGMA user_version = {version}")


def _settle(pending: _Pending, outcome: object) -> None:
    """Give the writer its outcome, whatever `then` does: a writer without one waits for ever."""
    if pending.then is not None and not isinstance(outcome, BaseException):
        try:
            pending.then(outcome)
        except Exception as failure:  # noqa: BLE001 - passed to the writer: its cache is behind
            outcome = failure
    if pending.future.done():
        return
    if isinstance(outcome, BaseException):
        pending.future.set_exception(outcome)
    else:
        pending.future.set_result(outcome)


def _translate(outcome: object, directory: Path) -> object:
    """The caller's error for SQLite's own error of a disk."""
    code = _code(outcome)
    translated: Exception
    if code not in _OF_DISKS:
        return outcome
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _no_room(directory)):
        translated = ExhaustedError(
            f"state database cannot be written ({outcome}); free space below the root directory"
        )
    else:
        translated = UnavailableError(
            f"state database cannot be written ({outcome}): the disk of {directory} fails or is "
            "read-only; check dmesg, repair it and restart criagent"
        )
    if isinstance(outcome, BaseException):
        translated.__cause__ = outcome
    return translated


def _no_room(directory: Path) -> bool:
    try:
        facts = os.statvfs(directory)
    except OSError:
        return False
    return facts.f_bavail * facts.f_frsize < _RESERVE_BYTES or bool(
        facts.f_files and not facts.f_favail
    )


def _is_full(outcome: object) -> bool:
    return _code(outcome) in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


def _code(outcome: object) -> int:
    """The primary error code of an SQLite error, 0 for anything else."""
    # errors of Python's own module have none
    return int(getattr(outcome, "sqlite_errorcode", 0)) & 0xFF


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )


def _configure(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA locking_mode = NORMAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.OperationalError, OSError) as exc:
        raise UnavailableError(
            f'state database "{path}" cannot be written ({exc}); make room on its disk, '
            "or set another storage.root"
        ) from exc


def _create(path: Path) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    connection = sqlite3.connect(temporary, isolation_level=None)
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    migrations.migrate(connection, path)
    connection.close()
    temporary.chmod(0o600)
    temporary.rename(path)
    migrations.sync_directory(path.parent)


def _check(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != _APPLICATION_ID:
        raise CorruptError(f'"{path}" is not a state database of criagent; move it away')
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise CorruptError(
            f'state database "{path}" is damaged: {verdict}; restore it from a backup'
        )
    version = migrations.schema_version(connection)
    if version > migrations.latest():
        copy = migrations.copy_name(path, migrations.latest())
        raise CorruptError(
            f'state database "{path}" has schema version {version}, newer than this '
            f"criagent supports ({migrations.latest()}); start the newer criagent again, or "
            f'replace the database by "{copy}" if it exists: pods created since then are '
            "ended"
        )
