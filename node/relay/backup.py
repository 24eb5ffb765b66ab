"""Copies a relay's home: online to a backup, and back.

    backup       the database first, as of one moment; then the packs, as far as it names them.
                 A second backup to the same directory copies what is new
    restore      the same, from a backup into a new home

A backup is a home: `shoal relay check --home BACKUP` reads it. Its database comes last under its
name, so a directory without one is no backup. It holds the relay's key: whoever has it can stand in
for the relay, and read as little.

Whatever runs on a copy is older than what members have seen. They find that out by themselves and
bring what is missing (`node.sync.distrust`, `node.sync.depositor`). Only the relay's own log is a
danger: a second entry of one number would be a fork. So a copy is marked, and a relay with that
mark writes nothing of its own to a folder until a member has shown it where its log ends.

Synchronous, for a worker thread. Between the copy of the database and the end no pack may be
deleted: see `SqliteStorage.packs_stay`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from crdt.errors import CallerError, IntegrityError, WorldError
from node.home import write_durably

DATABASE: Final = "relay.sqlite"
PACKS: Final = "packs"
COPY_SIZE: Final = 1024 * 1024  # bytes at a time
COPIED_MARK: Final = "copied"  # file in a home that is a copy of another
_UNFINISHED: Final = "relay.sqlite.new"
_SMALL: Final = ("identity", "token", "upkeep")  # `upkeep` may be missing


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy consists of; sizes in bytes. `copied` is what had to be read and written."""

    directory: str
    packs: int
    size: int
    copied: int


def back_up(home: Path, directory: Path) -> Copied:
    """Copy the relay in `home` to `directory`, which is new, empty, or an older backup of it.

    Raises:
        CallerError: it is something else.
        WorldError: the disk refused. An older backup in there may be incomplete now.
    """
    if directory == home or home in directory.parents or directory in home.parents:
        raise CallerError("a backup cannot lie in the relay's home, nor around it")
    older = (directory / DATABASE).exists() or (directory / _UNFINISHED).exists()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not older and any(directory.iterdir()):
            raise CallerError(f"{directory} is not empty, and no backup; name another directory")
    with contextlib.suppress(FileNotFoundError):
        if older and (directory / "identity").read_bytes() != (home / "identity").read_bytes():
            raise CallerError(f"{directory} is the backup of another relay; name another one")
    return _copy(home, directory)


def restore(backup: Path, home: Path) -> Copied:
    """Make `home` from a backup.

    Raises:
        CallerError: `backup` is none, or a relay lies in `home`.
        WorldError: the disk refused; what is in `home` is no relay yet. Try again.
    """
    if not (backup / DATABASE).exists():
        raise CallerError(f"{backup} is no backup of a relay: it has no {DATABASE}")
    if (home / DATABASE).exists():
        raise CallerError(
            f"a relay lies in {home} already. Nothing was changed; name another home with --home, "
            "or move that one away."
        )
    return _copy(backup, home)


def _copy(source: Path, target: Path) -> Copied:
    try:
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        (target / PACKS).mkdir(exist_ok=True, mode=0o700)
        ends = _copy_database(source / DATABASE, target / _UNFINISHED)
        copied = sum(
            _copy_pack(source / PACKS / f"{pack:08}.pack", target / PACKS, end)
            for pack, end in ends.items()
        )
        for name in _SMALL:
            with contextlib.suppress(FileNotFoundError):
                write_durably(target / name, (source / name).read_bytes())
        write_durably(target / COPIED_MARK, b"see node/relay/backup.py\n")
        _fsync(target / PACKS)
        (target / _UNFINISHED).replace(target / DATABASE)
        _fsync(target)
        for path in (target / PACKS).iterdir():  # of an older backup
            if path.name not in {f"{pack:08}.pack" for pack in ends}:
                path.unlink()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise WorldError(f"the database could not be copied: {error}") from error
        raise IntegrityError(f"the relay's database is damaged: {error}") from error
    except OSError as error:
        raise WorldError(f"cannot copy the relay to {target}: {error.strerror}") from error
    return Copied(str(target), len(ends), sum(ends.values()), copied)


def _copy_database(source: Path, target: Path) -> dict[int, int]:
    """Copy it as of one moment; returns how far it uses each pack."""
    target.unlink(missing_ok=True)
    descriptor = os.open(target, os.O_CREAT | os.O_WRONLY, 0o600)
    os.close(descriptor)
    with _open(source) as before, _open(target) as after:
        before.backup(after)
        after.execute("PRAGMA journal_mode = DELETE")  # one file, that can be read where it lies
        rows = after.execute("SELECT pack, max(offset + size) FROM blocks GROUP BY pack")
        ends = dict(rows.fetchall())
    _fsync(target)
    return ends


@contextlib.contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA busy_timeout = 5000")
        yield db


def _copy_pack(source: Path, directory: Path, end: int) -> int:
    """Copy a pack's first `end` bytes, unless they are there; returns how many were copied.

    A pack only ever grows, so one of the same length and time is the same.
    """
    target = directory / source.name
    try:
        before = source.stat()
    except FileNotFoundError:
        return 0  # a scrub says so
    with contextlib.suppress(FileNotFoundError):
        there = target.stat()
        if (there.st_size, there.st_mtime_ns) == (end, before.st_mtime_ns):
            return 0
    unfinished = directory / f"{source.name}.new"
    with source.open("rb") as reader, unfinished.open("wb") as writer:
        _copy_head(reader, writer, end)
        writer.flush()
        os.utime(unfinished, ns=(before.st_mtime_ns, before.st_mtime_ns))
        os.fsync(writer.fileno())
    unfinished.replace(target)
    return end


def _copy_head(reader: IO[bytes], writer: IO[bytes], size: int) -> None:
    """Copy the first `size` bytes; fewer where there are none, which a scrub finds."""
    while size and (data := reader.read(min(size, COPY_SIZE))):
        writer.write(data)
        size -= len(data)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
