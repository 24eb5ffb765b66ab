"""Compares a directory's listing with the disk rows. Pure but for `observe`, which runs in a
worker thread.

The rule that everything here serves: **only a successful listing of the parent proves a
deletion**. An error means "unknown"; it becomes a warning on that path and nothing else.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from crdt.slot import Kind, check_name
from node.files.port import FileSystem, Stat, StatKind, join, split_parent
from node.index.disk_rows import DiskRow
from node.sync.planner import still_as_agreed

Fold = Callable[[str], str]  # names with equal keys are one name on the disk


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies in one directory, or why we cannot say.

    `names` is None when all of it was listed; otherwise only these names were looked at. `replaced`
    means that another directory than the expected one lay there, so nothing was learned.
    """

    path: str
    entries: Mapping[str, Stat]
    names: frozenset[str] | None = None
    error: OSError | None = None
    replaced: bool = False


@dataclass(slots=True)
class Differences:
    """How a listing differs from the disk rows of that directory."""

    same: list[DiskRow] = field(default_factory=list)
    changed: list[tuple[DiskRow, Stat]] = field(default_factory=list)
    new: list[tuple[str, Stat]] = field(default_factory=list)
    missing: list[DiskRow] = field(default_factory=list)
    unsyncable: list[tuple[str, str]] = field(default_factory=list)  # name, why


def observe(
    fs: FileSystem,
    path: str,
    names: frozenset[str] | None,
    inode: int | None = None,
    fold: Fold | None = None,
) -> Listing:
    """List `path`, or look at a few names in it; a name that seems gone is confirmed by a
    listing.

    Args:
        fs: The folder.
        path: A directory in it.
        names: What to look at; None for all.
        inode: The directory that we mean, None for the root. People swap directories while we
            look: what lies in another one says nothing about this one.
        fold: On a disk that takes names with equal keys for one: all of these are looked at, as
            only a listing tells how the one that is there is spelled.
    """
    try:
        before = inode is None or fs.lstat(path).inode == inode
        listing = _observe(fs, path, names, fold)
        if before and (inode is None or fs.lstat(path).inode == inode):
            return listing
    except OSError as error:
        return Listing(path, {}, names, error)
    return Listing(path, {}, names, replaced=True)


def _observe(fs: FileSystem, path: str, names: frozenset[str] | None, fold: Fold | None) -> Listing:
    try:
        if names is None:
            return Listing(path, {entry.name: entry.stat for entry in fs.scandir(path)})
        if fold is not None:
            keys = {fold(name) for name in names}
            same = {e.name: e.stat for e in fs.scandir(path) if fold(e.name) in keys}
            return Listing(path, same, names | same.keys())
        found: dict[str, Stat] = {}
        for name in sorted(names):
            try:
                found[name] = fs.lstat(join(path, name))
            except FileNotFoundError:
                whole = {entry.name: entry.stat for entry in fs.scandir(path)}
                return Listing(path, {n: whole[n] for n in sorted(names) if n in whole}, names)
        return Listing(path, found, names)
    except OSError as error:
        return Listing(path, {}, names, error)


def lstat_exactly(fs: FileSystem, path: str, fold: Fold | None) -> Stat:
    """`lstat`, but of no other spelling.

    Raises:
        FileNotFoundError: nothing lies there under just this name.
    """
    if fold is not None:
        parent, name = split_parent(path)
        if all(entry.name != name for entry in fs.scandir(parent)):
            raise FileNotFoundError(errno.ENOENT, "only another spelling of it is there", path)
    return fs.lstat(path)


def is_gone(error: OSError) -> bool:
    """True when a listing failed since the directory itself is not there (its parent knows
    more).
    """
    return error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


def compare(
    listing: Listing, rows: Mapping[str, DiskRow], ignored: Callable[[str, bool], bool]
) -> Differences:
    """Sort what was seen into same, changed, new and missing.

    Args:
        listing: A successful one.
        rows: The directory's disk rows by name (at least those that `listing.names` asks for).
        ignored: `(path, is_directory) -> bool`. What is ignored is left alone in both directions.

    """
    assert listing.error is None, "an error tells nothing about what is there"
    found = Differences()
    for name, stat in listing.entries.items():
        kind = None if stat.kind is StatKind.OTHER else Kind(stat.kind)
        if ignored(join(listing.path, name), kind is Kind.DIRECTORY):
            continue
        row = rows.get(name)
        if kind is None:
            found.unsyncable.append((name, "it is neither a file, a directory nor a symlink"))
            if row is not None:
                found.missing.append(row)
        elif row is not None and kind is row.kind:
            if still_as_agreed(stat, row):
                found.same.append(row)
            else:
                found.changed.append((row, stat))
        else:
            if row is not None:
                found.missing.append(row)
            why = _unsyncable(name)
            if why is None:
                found.new.append((name, stat))
            else:
                found.unsyncable.append((name, why))
    _find_missing(listing, rows, ignored, found)
    return found


def _find_missing(
    listing: Listing,
    rows: Mapping[str, DiskRow],
    ignored: Callable[[str, bool], bool],
    found: Differences,
) -> None:
    asked: Iterable[str] = rows if listing.names is None else sorted(listing.names)
    for name in asked:
        row = rows.get(name)
        if row is None or name in listing.entries:
            continue
        if not ignored(join(listing.path, name), row.kind is Kind.DIRECTORY):
            found.missing.append(row)


def _unsyncable(name: str) -> str | None:
    try:
        check_name(name)
    except ValueError as error:
        return str(error)
    return None
