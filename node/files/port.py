"""The FileSystem port: everything the node does to a folder's files goes through it.

Real in `node.files.disk`, in memory in `node.files.memory`, failing on purpose in
`node.files.faulty`; `tests/conformance/test_file_system.py` holds all three to what is said here.

Methods are synchronous and safe to call from several threads at once: the node calls them in worker
threads, simulations call them inline.

**Paths** are relative to the root: '/'-joined names as `os.fsdecode` gives them (bytes that are no
UTF-8 show as surrogates), "" is the root itself. Nothing here ever follows a symlink or leaves the
root, whatever people do to the tree meanwhile. Mount points inside the folder are not entered
either: what lies there may be unplugged, which would look like a deletion; inode numbers mean
nothing across devices; renames do not work. Such a directory is listed, listing it fails.

**Errors** are the world's own: OSError with its errno. Every method may raise EIO, EACCES, EPERM,
EROFS, ENOSPC, EDQUOT, EMFILE, ENAMETOOLONG and so on; what has a meaning of its own:

- FileNotFoundError (ENOENT): the path or one of its parents does not exist.
- NotADirectoryError (ENOTDIR): a parent is not a directory; a symlink to one is not one.
- FileExistsError (EEXIST): `create`, `mkdir`, `symlink`, `rename` found something at the target.
- EXDEV: the path lies beyond a mount point inside the folder.
- `InvalidPathError`, `NotRegularFileError`, `ExchangeUnsupportedError`: below.

After any error from `WriteHandle.fsync`, `fsync_directory` or `sync`, assume that the data is lost,
even if a second call succeeds: the kernel forgets dirty pages that it could not write.
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

NAME_BYTES_MAX: Final = 255  # what Linux, macOS and Windows file systems hold in one name


class StatKind(enum.IntEnum):
    """What lies at a path. The first three have the values of `crdt.slot.Kind`."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    OTHER = 4  # socket, FIFO, device: never synced


@dataclass(frozen=True, slots=True)
class Stat:
    """What lstat says. Two equal ones mean the same content, racy-clean rule aside.

    `inode` and `device` are signed 64-bit numbers, so that SQLite holds them as they are.
    `blocks` are 512-byte units on the disk (a sparse file has fewer than its size says), or -1
    where unknown.
    """

    kind: StatKind
    inode: int
    device: int
    size: int
    mtime_ns: int
    ctime_ns: int
    executable: bool
    links: int
    blocks: int = -1
    permissions: int = 0o644  # rwx for owner, group and others; for the disk, not for the tree


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a listing."""

    name: str
    stat: Stat


class InvalidPathError(OSError):
    """EINVAL: the path is absolute, or a component is "", ".", ".." or holds a NUL or a lone
    surrogate that stands for no byte. A hostile peer or a bug of ours; nothing was touched.
    """

    def __init__(self, path: str) -> None:
        super().__init__(errno.EINVAL, "not a relative path beneath the folder", path)


class NotRegularFileError(OSError):
    """Asked to read or write something that is no regular file.

    The errno says what it is: ELOOP a symlink, EISDIR a directory, ENXIO a FIFO, socket or device.
    """


class ExchangeUnsupportedError(OSError):
    """ENOTSUP: this file system or system cannot exchange two names at once. Nothing was changed;
    the caller renames in two steps.
    """

    def __init__(self, path: str) -> None:
        super().__init__(errno.ENOTSUP, "this disk cannot exchange two names", path)


class ReadHandle(Protocol):
    """A regular file, open for reading. Keeps the file alive, even if unlinked or replaced."""

    def stat(self) -> Stat:
        """The open file's stat, whatever its name leads to by now."""
        ...

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer only where the file ends."""
        ...

    def fsync(self) -> None:
        """Return once content and metadata are on the disk. The *name* needs `fsync_directory`."""
        ...

    def close(self) -> None:
        """Close; a second call does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class WriteHandle(ReadHandle, Protocol):
    """A regular file, open for reading and writing."""

    def write_at(self, offset: int, data: bytes) -> None:
        """Write all of `data`. After an error any part of it may have been written."""
        ...

    def truncate(self, size: int) -> None:
        """Cut, or extend with a hole, to `size` bytes."""
        ...

    def set_metadata(
        self,
        *,
        mtime_ns: int | None = None,
        executable: bool | None = None,
        permissions: int | None = None,
    ) -> None:
        """Set what is not None: permissions first, then executable for whom it is readable.

        Give new content the `Stat.permissions` of what it replaces: a private file stays private.
        """
        ...


class AloneHandle(WriteHandle, Protocol):
    """A file that nobody else has open. Until it is closed, whoever opens it waits."""

    def settle(self) -> bool:
        """Return once a later write gets a later time of change.

        False if others may not have waited so long: somebody may have written already.
        """
        ...


class FileSystem(Protocol):
    """One folder's tree."""

    def scandir(self, path: str) -> list[Entry]:
        """Everything in a directory, in no particular order, each with its lstat.

        An entry that vanishes meanwhile is left out. Any other error raises: never a partial list.
        One that is *renamed* meanwhile may be missing under both names (POSIX allows it), so ask
        `lstat` before concluding that something was deleted.
        """
        ...

    def lstat(self, path: str) -> Stat:
        """What lies at `path`."""
        ...

    def open_read(self, path: str) -> ReadHandle:
        """Open a regular file; never waits (FIFOs are refused).

        Raises:
            NotRegularFileError: something else lies there.
        """
        ...

    def create(self, path: str, *, executable: bool = False) -> WriteHandle:
        """A new, empty regular file; permissions follow the umask.

        Raises:
            FileExistsError: anything lies there, a dangling symlink included.
        """
        ...

    def open_write(self, path: str) -> WriteHandle:
        """Open an existing regular file, as it is.

        Raises:
            NotRegularFileError: something else lies there.
        """
        ...

    def open_alone(self, path: str) -> AloneHandle:
        """Like `open_write`, if nobody has the file open, or mapped into memory.

        Raises:
            OSError: EAGAIN: somebody has. Anything else: it cannot be told, here or for this file.
        """
        ...

    def clone(self, source: str, target: str) -> None:
        """A new file with the content of a regular one, sharing its place on the disk.

        Raises:
            OSError: EOPNOTSUPP: this disk cannot. Nothing was created.
            FileExistsError: something lies at `target`.
        """
        ...

    def mkdir(self, path: str, *, private: bool = False) -> None:
        """A new directory; permissions follow the umask, a private one is for its owner only."""
        ...

    def rmdir(self, path: str) -> None:
        """Remove an empty directory; ENOTEMPTY if it is not."""
        ...

    def unlink(self, path: str) -> None:
        """Remove a name that is no directory's (IsADirectoryError or PermissionError if so)."""
        ...

    def symlink(self, target: str, path: str) -> None:
        """A new symlink at `path`; `target` is stored as it is."""
        ...

    def readlink(self, path: str) -> str:
        """A symlink's target; EINVAL if it is none."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Move a name, never over another one.

        On a disk that folds case, a rename that changes only the case raises FileExistsError as
        well: go by way of a temporary name.

        Raises:
            FileExistsError: something lies at `target`. Nothing was changed.
        """
        ...

    def exchange(self, first: str, second: str) -> None:
        """Swap what two existing names lead to, in one step.

        Raises:
            ExchangeUnsupportedError: nothing was changed.
        """
        ...

    def set_metadata(
        self, path: str, *, mtime_ns: int | None = None, executable: bool | None = None
    ) -> None:
        """`WriteHandle.set_metadata` for a regular file by name.

        Raises:
            NotRegularFileError: something else lies there.
        """
        ...

    def fsync_directory(self, path: str) -> None:
        """Return once the directory's names are on the disk."""
        ...

    def sync(self) -> None:
        """Return once all of the folder's file system is on the disk."""
        ...

    def free_bytes(self) -> int:
        """What an ordinary user may still write."""
        ...

    def identity(self) -> tuple[int, int]:
        """(device, inode) of the root directory."""
        ...

    def is_attached(self) -> bool:
        """True while the folder's path still leads to the root that was opened."""
        ...

    def close(self) -> None:
        """Let go of the root. No other call may be running, none may follow."""
        ...


def split_path(path: str) -> list[str]:
    """The names of a path, [] for the root.

    Raises:
        InvalidPathError: it could mean something outside the root, or nothing at all.
    """
    if not path:
        return []
    names = path.split("/")
    if "\0" in path or "" in names or "." in names or ".." in names:
        raise InvalidPathError(path)
    try:
        path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InvalidPathError(path) from None
    return names


def split_parent(path: str) -> tuple[str, str]:
    """(parent path, name) of a path that is not the root.

    Raises:
        InvalidPathError: as for `split_path`, or the path is the root.
    """
    names = split_path(path)
    if not names:
        raise InvalidPathError(path)
    return path[: -len(names[-1]) - 1], names[-1]


def join(parent: str, name: str) -> str:
    """The path of `name` in directory `parent`."""
    return f"{parent}/{name}" if parent else name
