"""Opens a folder's index: one SQLite database in WAL mode, with one writer, the event loop.

A commit is durable when it returns (`synchronous=FULL`): entries may be sent and acknowledged
after it. Calls are short and synchronous. A damaged index is moved aside, never repaired in place
and never deleted; what can be rebuilt is rebuilt from the disk and from peers, as "unknown", which
deletes nothing.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from crdt.errors import WorldError
from node.index.damage import DamagedIndexError, is_damage, note_path
from node.index.schema import MIGRATIONS, SCHEMA_VERSION

CHECKED_SIZE_MAX: Final = 64 * 1024 * 1024  # bytes; a full check of more would delay the start
CACHE_KIB: Final = 16_384
WAL_PAGES_MAX: Final = 2_000  # pages before a checkpoint: 8 MB


class IndexUnwritableError(WorldError):
    """The disk with the index is full, read-only or failing. Nothing was changed; try again."""


class Database:
    """A connection and its transactions."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None = None) -> None:
        self.connection = connection
        self.path = path
        self._depth = 0

    @property
    def in_transaction(self) -> bool:
        """True within `transaction`."""
        return self._depth > 0

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block in one transaction: all of it is durable afterwards, or none of it
        happened.

        Transactions nest; only the outermost commits.

        Raises:
            IndexUnwritableError: the disk refused; nothing happened.
        """
        if self._depth:
            self._depth += 1
            try:
                yield self.connection
            finally:
                self._depth -= 1
            return
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            self._depth = 1
            yield self.connection
            self.connection.execute("COMMIT")
        except BaseException as error:
            # SQLite may have rolled back by itself: a full disk ends a transaction at once.
            with contextlib.suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error) and _is_the_disk(error):
                raise IndexUnwritableError(
                    f"the index could not be written ({error}). Nothing was lost; it is tried "
                    "again. Is the disk with the home full, or read-only?"
                ) from error
            raise
        finally:
            self._depth = 0

    def close(self) -> None:
        """Fold the write-ahead log in and close."""
        with contextlib.suppress(sqlite3.Error):
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.connection.close()


def open_database(path: Path | None) -> Database:
    """Open the index at `path`, creating or migrating it; None opens one in memory.

    Raises:
        DamagedIndexError: the file is not a sound SQLite database.
        WorldError: it was written by a newer Shoal, or cannot be opened.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if (note := note_path(path)).exists():
            raise DamagedIndexError(f"the index {path} is damaged: {note.read_text()}")
    try:
        connection = sqlite3.connect(
            ":memory:" if path is None else path, isolation_level=None, cached_statements=512
        )
    except sqlite3.OperationalError as error:
        raise WorldError(f"cannot open the index {path}: {error}") from error
    try:
        if path is not None:
            os.chmod(path, 0o600)
        _prepare(connection, path)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        connection.close()
        if is_damage(error):
            raise DamagedIndexError(f"the index {path} is damaged: {error}") from error
        raise WorldError(f"cannot open the index {path}: {error}") from error
    except BaseException:
        connection.close()
        raise
    return Database(connection, path)


def _is_the_disk(error: sqlite3.Error) -> bool:
    """True when the disk refused, and may do better later."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF in {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_BUSY,
    }


def _prepare(connection: sqlite3.Connection, path: Path | None) -> None:
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "busy_timeout=5000",
        "temp_store=MEMORY",
        f"cache_size=-{CACHE_KIB}",
        f"wal_autocheckpoint={WAL_PAGES_MAX}",
    ):
        connection.execute(f"PRAGMA {pragma}")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise WorldError(
            f"the index {path} was written by a newer Shoal (schema {version}, this one knows "
            f"{SCHEMA_VERSION}). Nothing was changed; update Shoal."
        )
    if version and path is not None and path.stat().st_size <= CHECKED_SIZE_MAX:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
    for number in range(version, SCHEMA_VERSION):
        script = MIGRATIONS[number]
        connection.executescript(f"BEGIN;{script};PRAGMA user_version={number + 1};COMMIT;")


def move_aside(path: Path, stamp: str) -> Path:
    """Rename a damaged index and its side files; returns where it went."""
    target = path.with_name(f"{path.name}.damaged-{stamp}")
    for suffix in ("", "-wal", "-shm"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.rename(target.with_name(target.name + suffix))
    note_path(path).unlink(missing_ok=True)
    return target
