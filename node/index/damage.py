"""What it means that an index is damaged, for everything that reads its rows.

SQLite notices a broken structure, not a bit that flipped within a value. So whoever decodes a row
raises `DamagedIndexError` where that fails: the folder stops, and the next start puts the index
aside and builds a new one.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Final

from crdt.errors import IntegrityError

UNREADABLE: Final = (ValueError, TypeError, OverflowError)
"""What decoding a value raises that is not what we stored: other bytes, or another type."""


class DamagedIndexError(IntegrityError):
    """The index cannot be read. The folder's files are safe; the index can be rebuilt from them."""


def unreadable(what: str, error: Exception) -> DamagedIndexError:
    """The error for a row that does not decode."""
    return DamagedIndexError(f"the index holds {what} that is none: {error}")


def is_damage(error: Exception) -> bool:
    """True when the index itself is broken, rather than the disk full or busy."""
    if isinstance(error, DamagedIndexError | UnicodeDecodeError):
        return True  # sqlite3 decodes its own messages, which quote a broken schema
    if not isinstance(error, sqlite3.DatabaseError):
        return False
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def note_path(path: Path) -> Path:
    """Where it is noted that the index at `path` is damaged."""
    return path.with_name(f"{path.name}.damage")


def note_damage(path: Path | None, error: Exception) -> None:
    """Tell the next start, which SQLite may tell nothing, that the index at `path` is damaged."""
    if path is not None:
        with contextlib.suppress(OSError):
            note_path(path).write_text(str(error))
