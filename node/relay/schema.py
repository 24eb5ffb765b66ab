"""The relay's tables, and how an older database becomes the present one.

Migration `n` turns `PRAGMA user_version` `n` into `n + 1`; one that was released never changes.
docs/relay.md explains each table. All that a relay knows is in here, in the clear.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from crdt.errors import IntegrityError, WorldError

_FIRST: Final = """
CREATE TABLE folders (
    id INTEGER PRIMARY KEY,
    folder BLOB NOT NULL UNIQUE,
    sponsor BLOB NOT NULL,            -- the device that brought it
    generation BLOB NOT NULL,         -- new whenever a block is there no more
    number INTEGER NOT NULL,          -- deposits so far
    mark BLOB NOT NULL                -- chained over all of them
);

CREATE TABLE entries (
    arrival INTEGER PRIMARY KEY,      -- order of acceptance: within a folder, a causal order
    folder INTEGER NOT NULL,
    device BLOB NOT NULL,
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL,
    lamport INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    entry BLOB NOT NULL,              -- as it travels: clear header, signature, sealed body
    UNIQUE (folder, device, seq)
);
CREATE INDEX entries_roster ON entries (folder, arrival) WHERE kind = 2;

CREATE TABLE blocks (
    folder INTEGER NOT NULL,
    block BLOB NOT NULL,              -- the keyed hash that the folder knows it by
    digest BLOB NOT NULL,             -- BLAKE3 of the sealed bytes
    depositor BLOB NOT NULL,
    signature BLOB NOT NULL,          -- the depositor's statement
    size INTEGER NOT NULL,
    pack INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    number INTEGER NOT NULL,          -- the deposit's number and mark within its folder
    mark BLOB NOT NULL,
    dropped_s INTEGER,                -- when members said that they need it no more
    PRIMARY KEY (folder, block)
) WITHOUT ROWID;
CREATE UNIQUE INDEX blocks_number ON blocks (folder, number);
CREATE INDEX blocks_pack ON blocks (pack, offset, size);
CREATE INDEX blocks_dropped ON blocks (dropped_s) WHERE dropped_s IS NOT NULL;

CREATE TABLE usage (                  -- sums over the tables above, by author and depositor
    folder INTEGER NOT NULL,
    device BLOB NOT NULL,
    entries INTEGER NOT NULL,
    entry_bytes INTEGER NOT NULL,
    blocks INTEGER NOT NULL,
    block_bytes INTEGER NOT NULL,
    PRIMARY KEY (folder, device)
) WITHOUT ROWID;
"""

MIGRATIONS: Final[tuple[str, ...]] = (_FIRST,)
SCHEMA_VERSION: Final = len(MIGRATIONS)


def open_database(path: Path) -> sqlite3.Connection:
    """Open or create the relay's database.

    Raises:
        IntegrityError: it is damaged; nothing was changed.
        WorldError: it was written by a newer Shoal, or cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        db = connect(path)
        path.chmod(0o600)
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise WorldError(
                f"{path} was written by a newer Shoal (schema {version}, this one knows "
                f"{SCHEMA_VERSION}). Nothing was changed; update Shoal."
            )
        for number in range(version, SCHEMA_VERSION):
            script = MIGRATIONS[number]
            db.executescript(f"BEGIN;{script};PRAGMA user_version={number + 1};COMMIT;")
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        raise WorldError(f"cannot open {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    else:
        if verdict == "ok":
            return db
    raise IntegrityError(
        f"{path} is damaged ({verdict}). It was left as it is, and devices keep what they have. "
        "Restore a backup, or move the file and `packs` away: members fill a new one."
    )


def connect(path: Path) -> sqlite3.Connection:
    """A connection whose commits are durable."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
        db.execute(f"PRAGMA {pragma}")
    return db
