"""Reads the whole index and says whether it is sound.

A check has a connection of its own and may run in a worker thread beside the writer. What it finds
damaged is noted in a file beside the index, so that the next start puts the index aside even where
SQLite itself would notice nothing: a bit in an entry is no fault of the database's structure.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from crdt.entry import Entry
from node.index.damage import note_path


def index_damage(path: Path | None) -> str | None:
    """What is wrong with the index at `path`; None if it is sound, or only in memory."""
    if path is None:
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            damage = _structure(database) or _log(database)
    except sqlite3.OperationalError:
        return None  # busy, or gone: no word about its content
    except sqlite3.DatabaseError as error:
        damage = str(error)
    if damage is not None:
        note_path(path).write_text(damage)
    return damage


def _structure(database: sqlite3.Connection) -> str | None:
    (verdict,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    return None if verdict == "ok" else str(verdict)


def _log(database: sqlite3.Connection) -> str | None:
    """Every entry is what its hash says."""
    for device, seq, known, data in database.execute("SELECT device, seq, hash, entry FROM log"):
        try:
            entry = Entry.from_bytes(data)
        except ValueError:
            return f"entry {seq} of a log cannot be read"
        if (entry.hash, entry.header.device, entry.header.seq) != (known, device, seq):
            return f"entry {seq} of a log is not what it was"
        if not entry.verify_signature():
            return f"entry {seq} of a log is not what was signed"
    return None
