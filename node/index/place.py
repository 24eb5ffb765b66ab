"""Whether an index is the file that it was, or a copy: restored from a backup, cloned, or moved.

A device that writes on from an old index signs a second entry for one place in its log, which is a
fork. So the index remembers which file it lies in, by inode number and, where the file system has
it, the inode's generation. A copy made by a program is another file. A snapshot of a whole disk or
of a virtual machine is not, and is not noticed here.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from crdt.codec import pack
from node.index.database import Database

_KEY: Final = "file"  # in `meta`
_FS_IOC_GETVERSION: Final = 0x80087601  # linux/fs.h; other systems refuse it


def is_copy(database: Database, path: Path) -> bool:
    """True when the index at `path` was another file when it last said where it is."""
    found = database.connection.execute("SELECT value FROM meta WHERE key = ?", (_KEY,)).fetchone()
    return found is not None and bytes(found[0]) != _stamp(path)


def note_place(database: Database, path: Path) -> None:
    """Remember that the index is this file."""
    value = _stamp(path)
    with database.transaction():
        database.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_KEY, value))


def _stamp(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        generation = array.array("l", [0])
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, _FS_IOC_GETVERSION, generation, True)
        return pack([os.fstat(descriptor).st_ino, generation[0] & 0xFFFFFFFF])
    finally:
        os.close(descriptor)
