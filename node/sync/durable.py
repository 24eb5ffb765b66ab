"""What is published must survive a power cut on the disk it was found on.

A program saves without fsync; the scan reads what lies in the kernel's memory and publishes it; the
power fails. The file comes back empty, torn or not at all, and the next scan would take that for an
edit or a deletion made after what was published, and every device would follow. So contents and
names that a scan found are synced before the index is told of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from node.files.port import FileSystem, NotRegularFileError, join
from node.index.disk_rows import DiskRows
from node.sync.observed import Created, Deleted, Edited, Moved, Observed

ONE_BY_ONE_MAX: Final = 8  # contents and directories from which on one syncfs is cheaper


def unsynced(disk: DiskRows, found: Iterable[Observed]) -> tuple[list[str], list[str]] | None:
    """The files and directories that `found` is about.

    Returns: (files, directories), or None if they are too many, or not all have a path yet.
    """
    files: set[str] = set()
    directories: set[str] = set()
    for seen in found:
        match seen:
            case Created() | Moved():
                parent, name = seen.parent, seen.name
            case Edited() | Deleted():
                parent, name = seen.row.parent, seen.row.name
            case _:
                continue
        directory = disk.path(parent)
        if directory is None:
            return None
        directories.add(directory)
        if isinstance(seen, Created | Edited) and seen.described.stat.size:
            files.add(join(directory, name))
        if len(files) + len(directories) > ONE_BY_ONE_MAX:
            return None
    return sorted(files), sorted(directories)


def sync_found(fs: FileSystem, paths: tuple[Sequence[str], Sequence[str]] | None) -> None:
    """Make durable what `unsynced` named; for a worker thread.

    Raises:
        OSError: the disk refused: publish nothing.
    """
    if paths is None:
        fs.sync()
        return
    files, directories = paths
    for path in files:
        try:
            with fs.open_read(path) as handle:
                handle.fsync()
        except (FileNotFoundError, NotADirectoryError, NotRegularFileError):
            continue  # it is being changed; the next scan knows
    for path in directories:
        try:
            fs.fsync_directory(path)
        except (FileNotFoundError, NotADirectoryError):
            fs.sync()  # it is gone itself, and its parent's names are what matters
