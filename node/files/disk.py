"""The real file system: a folder on this machine's disk. Linux first; macOS by the fallbacks.

The root directory is opened once and held. Every call opens the parent directory beneath that
handle in one step (`openat2`: no symlink in any component, no mount point, no way out), does its
work relative to the parent's handle, and lets go. Where the kernel or a sandbox refuses `openat2`,
the parents are opened one by one with O_NOFOLLOW. Handles of parents are not kept between calls:
after a rename they would lead to where the directory has gone.

Held root: should the person move the folder, calls go on working in the moved directory, never in
whatever took its place; `is_attached` tells. A removable disk cannot be unmounted meanwhile.

Any number of threads may call at once. Errors are the kernel's, with the path relative to the root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as modes
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TypeVar

from node.files import syscalls
from node.files.port import (
    Entry,
    ExchangeUnsupportedError,
    NotRegularFileError,
    Stat,
    StatKind,
    split_parent,
    split_path,
)

T = TypeVar("T")

_BENEATH: Final = (
    syscalls.RESOLVE_BENEATH
    | syscalls.RESOLVE_NO_SYMLINKS
    | syscalls.RESOLVE_NO_MAGICLINKS
    | syscalls.RESOLVE_NO_XDEV
)
TICK_S: Final = 0.012  # longer than the coarsest kernel clock's 10 ms
LEASE_S: Final = 10.0  # Linux lets others wait for 45 s, less if /proc/sys/fs says so
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PARENT: Final = _DIRECTORY | getattr(os, "O_PATH", 0)  # needs no read permission on Linux
_FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_KINDS: Final = {
    modes.S_IFREG: StatKind.FILE,
    modes.S_IFDIR: StatKind.DIRECTORY,
    modes.S_IFLNK: StatKind.SYMLINK,
}


class DiskFileSystem:
    """`FileSystem` over a directory of this machine."""

    def __init__(self, root: str | os.PathLike[str], *, kernel_resolves: bool = True) -> None:
        """Open `root`; here, and only here, symlinks are followed.

        Args:
            root: An existing directory.
            kernel_resolves: False leaves `openat2` alone even where it works (tests).

        Raises:
            OSError: `root` does not exist, is no directory or may not be read.
        """
        self._path = os.path.abspath(root)
        self._root = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        found = os.fstat(self._root)
        self._identity = (_signed(found.st_dev), _signed(found.st_ino))
        self._device = found.st_dev
        self._openat2 = kernel_resolves and _openat2_works(self._root)

    def scandir(self, path: str) -> list[Entry]:
        """See `FileSystem`."""
        fd = self.open_directory(path)
        entries = []
        try:
            self._refuse_other_device(fd)
            with os.scandir(fd) as found:
                for entry in found:
                    with contextlib.suppress(FileNotFoundError):
                        entries.append(
                            Entry(entry.name, _to_stat(entry.stat(follow_symlinks=False)))
                        )
            if not entries:
                self._refuse_removed(fd, path)
        except OSError as error:
            error.filename = path
            raise
        finally:
            os.close(fd)
        return entries

    def lstat(self, path: str) -> Stat:
        """See `FileSystem`."""
        if not path:
            return _to_stat(os.fstat(self._root))
        return self._at(
            path, lambda name, fd: _to_stat(os.stat(name, dir_fd=fd, follow_symlinks=False))
        )

    def open_read(self, path: str) -> DiskFile:
        """See `FileSystem`."""
        return self._open_file(path, os.O_RDONLY)

    def create(self, path: str, *, executable: bool = False) -> DiskFile:
        """See `FileSystem`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE
        mode = 0o777 if executable else 0o666
        return DiskFile(self._at(path, lambda name, fd: os.open(name, flags, mode, dir_fd=fd)))

    def open_write(self, path: str) -> DiskFile:
        """See `FileSystem`."""
        return self._open_file(path, os.O_RDWR)

    def open_alone(self, path: str) -> AloneFile:
        """See `FileSystem`."""
        file = self._open_file(path, os.O_RDWR)
        try:
            return AloneFile(file)
        except BaseException:
            file.close()
            raise

    def clone(self, source: str, target: str) -> None:
        """See `FileSystem`."""
        with self._open_file(source, os.O_RDONLY) as file:
            copy = self.create(target)
            try:
                syscalls.clone(file.fileno(), copy.fileno())
            except BaseException:
                self.unlink(target)
                raise
            finally:
                copy.close()

    def mkdir(self, path: str, *, private: bool = False) -> None:
        """See `FileSystem`."""
        mode = 0o700 if private else 0o777
        self._at(path, lambda name, fd: os.mkdir(name, mode, dir_fd=fd))

    def rmdir(self, path: str) -> None:
        """See `FileSystem`."""
        self._at(path, lambda name, fd: os.rmdir(name, dir_fd=fd))

    def unlink(self, path: str) -> None:
        """See `FileSystem`."""
        self._at(path, lambda name, fd: os.unlink(name, dir_fd=fd))

    def symlink(self, target: str, path: str) -> None:
        """See `FileSystem`."""
        self._at(path, lambda name, fd: os.symlink(target, name, dir_fd=fd))

    def readlink(self, path: str) -> str:
        """See `FileSystem`."""
        return self._at(path, lambda name, fd: os.readlink(name, dir_fd=fd))

    def rename(self, source: str, target: str) -> None:
        """See `FileSystem`."""

        def rename(source: str, source_fd: int, target: str, target_fd: int) -> None:
            try:
                syscalls.rename_noreplace(source, target, source_fd=source_fd, target_fd=target_fd)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                _rename_by_hand(source, source_fd, target, target_fd)

        self._at_both(source, target, rename)

    def exchange(self, first: str, second: str) -> None:
        """See `FileSystem`."""

        def exchange(first_name: str, first_fd: int, second_name: str, second_fd: int) -> None:
            try:
                syscalls.rename_exchange(
                    first_name, second_name, first_fd=first_fd, second_fd=second_fd
                )
            except OSError as error:
                nested = f"{first}/".startswith(f"{second}/") or f"{second}/".startswith(
                    f"{first}/"
                )
                if error.errno not in _UNSUPPORTED or nested:  # EINVAL: one lies inside the other
                    raise
                raise ExchangeUnsupportedError(first) from None

        self._at_both(first, second, exchange)

    def set_metadata(
        self, path: str, *, mtime_ns: int | None = None, executable: bool | None = None
    ) -> None:
        """See `FileSystem`."""
        with self._open_file(path, os.O_RDONLY) as file:
            file.set_metadata(mtime_ns=mtime_ns, executable=executable)

    def fsync_directory(self, path: str) -> None:
        """See `FileSystem`."""
        fd = self.open_directory(path)
        try:
            os.fsync(fd)
        except OSError as error:
            error.filename = path
            if error.errno != errno.EINVAL:
                raise
            self.sync()  # some network file systems cannot sync a directory by itself
        finally:
            os.close(fd)

    def sync(self) -> None:
        """See `FileSystem`."""
        syscalls.syncfs(self._root)

    def free_bytes(self) -> int:
        """See `FileSystem`."""
        found = os.fstatvfs(self._root)
        return found.f_bavail * found.f_frsize

    def identity(self) -> tuple[int, int]:
        """See `FileSystem`."""
        return self._identity

    def is_attached(self) -> bool:
        """See `FileSystem`. An error other than "nothing there" raises: it proves nothing."""
        try:
            found = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (_signed(found.st_dev), _signed(found.st_ino)) == self._identity

    def close(self) -> None:
        """See `FileSystem`."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def open_directory(self, path: str) -> int:
        """A handle of a directory, for the watcher; close it with `os.close`."""
        return self._open_directory(path, _DIRECTORY)

    def _open_directory(self, path: str, flags: int) -> int:
        """A new handle of directory `path`, reached without following anything."""
        names = split_path(path)
        if not names:
            return os.open(".", flags, dir_fd=self._root)
        if self._openat2:
            try:
                return syscalls.openat2(path, flags, _BENEATH, dir_fd=self._root)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise NotADirectoryError(errno.ENOTDIR, "a symlink on the way", path) from None
                # EAGAIN: a rename elsewhere got in the way. ENAMETOOLONG: maybe the path as a
                # whole, beyond PATH_MAX. Both work step by step.
                if error.errno not in (errno.EAGAIN, errno.ENAMETOOLONG):
                    raise
        return self._walk(path, names, flags)

    def _walk(self, path: str, names: list[str], flags: int) -> int:
        """`_open_directory` one component at a time."""
        fd = self._root
        try:
            for i, name in enumerate(names):
                step = flags if i == len(names) - 1 else _PARENT
                parent, fd = fd, os.open(name, step, dir_fd=fd)
                if parent != self._root:
                    os.close(parent)
                self._refuse_other_device(fd)
        except OSError as error:
            if fd != self._root:
                os.close(fd)
            if error.errno == errno.ELOOP:  # macOS; Linux says ENOTDIR
                raise NotADirectoryError(errno.ENOTDIR, "a symlink on the way", path) from None
            error.filename = path
            raise
        return fd

    def _refuse_other_device(self, fd: int) -> None:
        if os.fstat(fd).st_dev != self._device:
            raise OSError(errno.EXDEV, "another file system is mounted there")

    def _refuse_removed(self, fd: int, path: str) -> None:
        """Glibc passes off a directory that was removed meanwhile as an empty one."""
        if (
            self.is_attached()
            if not path
            else self.lstat(path).inode == _signed(os.fstat(fd).st_ino)
        ):
            return
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _at(self, path: str, act: Callable[[str, int], T]) -> T:
        """`act(name, parent's handle)`."""
        parent, name = split_parent(path)
        fd = self._open_directory(parent, _PARENT) if parent else self._root
        try:
            return act(name, fd)
        except OSError as error:
            error.filename = path
            raise
        finally:
            if parent:
                os.close(fd)

    def _at_both(self, one: str, other: str, act: Callable[[str, int, str, int], None]) -> None:
        """`act(name, parent's handle, other name, other parent's handle)`."""

        def at_one(name: str, fd: int) -> None:
            if split_parent(other)[0] == split_parent(one)[0]:
                act(name, fd, split_parent(other)[1], fd)
            else:
                self._at(other, lambda other_name, other_fd: act(name, fd, other_name, other_fd))

        self._at(one, at_one)

    def _open_file(self, path: str, flags: int) -> DiskFile:
        """Open a regular file. Directories, which may only be read, are found out by fstat."""
        try:
            fd = self._at(path, lambda name, fd: os.open(name, flags | _FILE, dir_fd=fd))
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise NotRegularFileError(error.errno, "no regular file", path) from None
            raise
        kind = modes.S_IFMT(os.fstat(fd).st_mode)
        if kind != modes.S_IFREG:
            os.close(fd)
            number = errno.EISDIR if kind == modes.S_IFDIR else errno.ENXIO
            raise NotRegularFileError(number, "no regular file", path)
        return DiskFile(fd)


class DiskFile:
    """An open regular file: `ReadHandle` and `WriteHandle`."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def stat(self) -> Stat:
        """See `ReadHandle`."""
        return _to_stat(os.fstat(self._fd))

    def read_at(self, offset: int, size: int) -> bytes:
        """See `ReadHandle`."""
        data = os.pread(self._fd, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]  # a short read: the end of the file, or a signal
        done = len(data)
        while done < size and (data := os.pread(self._fd, size - done, offset + done)):
            parts.append(data)
            done += len(data)
        return b"".join(parts)

    def write_at(self, offset: int, data: bytes) -> None:
        """See `WriteHandle`."""
        done = os.pwrite(self._fd, data, offset)
        while done < len(data):
            done += os.pwrite(self._fd, memoryview(data)[done:], offset + done)

    def truncate(self, size: int) -> None:
        """See `WriteHandle`."""
        os.ftruncate(self._fd, size)

    def fsync(self) -> None:
        """See `ReadHandle`."""
        if sys.platform == "darwin":
            import fcntl  # noqa: PLC0415 - exists on POSIX only

            fcntl.fcntl(self._fd, fcntl.F_FULLFSYNC)  # macOS: fsync stops at the drive's cache
        else:
            os.fsync(self._fd)

    def set_metadata(
        self,
        *,
        mtime_ns: int | None = None,
        executable: bool | None = None,
        permissions: int | None = None,
    ) -> None:
        """See `WriteHandle`."""
        found = os.fstat(self._fd)
        mode = modes.S_IMODE(found.st_mode) if permissions is None else permissions & 0o777
        if executable is not None and executable != bool(mode & modes.S_IXUSR):
            mode = mode | (mode & 0o444) >> 2 if executable else mode & ~0o111
        if mode != modes.S_IMODE(found.st_mode):
            os.fchmod(self._fd, mode)
        if mtime_ns is not None and mtime_ns != found.st_mtime_ns:
            os.utime(self._fd, ns=(found.st_atime_ns, mtime_ns))

    def fileno(self) -> int:
        """The file descriptor."""
        return self._fd

    def close(self) -> None:
        """See `ReadHandle`."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AloneFile(DiskFile):
    """A file under a lease: `AloneHandle`."""

    __slots__ = ("_since_s",)

    def __init__(self, file: DiskFile) -> None:
        syscalls.lease(file.fileno())
        super().__init__(file.fileno())
        self._since_s = time.monotonic()

    def settle(self) -> bool:
        """See `AloneHandle`."""
        time.sleep(TICK_S)
        return time.monotonic() - self._since_s < LEASE_S


def _rename_by_hand(source: str, source_fd: int, target: str, target_fd: int) -> None:
    """Rename without replacing where the file system has no such call (NFS, some FUSE).

    A hard link is made only if the name is free, so for files nothing can slip in between. For
    directories, and on disks without hard links, what appears within microseconds is replaced: an
    empty directory by a directory, or (FAT) a file.
    """
    try:
        os.stat(target, dir_fd=target_fd, follow_symlinks=False)
    except FileNotFoundError:
        pass
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target)
    found = os.stat(source, dir_fd=source_fd, follow_symlinks=False)
    if not modes.S_ISDIR(found.st_mode):
        try:
            os.link(
                source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False
            )
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _UNSUPPORTED | {errno.EPERM, errno.EMLINK}:
                raise
        else:
            os.unlink(source, dir_fd=source_fd)
            return
    os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)


def _openat2_works(root: int) -> bool:
    """False before Linux 5.6, elsewhere, and in sandboxes that forbid what they do not know."""
    try:
        os.close(syscalls.openat2(".", _PARENT, _BENEATH, dir_fd=root))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL):
            return False
        raise
    return True


def _executable(mode: int) -> bool:
    return bool(mode & modes.S_IXUSR) and modes.S_ISREG(mode)


def _signed(number: int) -> int:
    """The same 64 bits as SQLite holds them; some FUSE file systems use all of them."""
    return number if number < 2**63 else number - 2**64


def _to_stat(found: os.stat_result) -> Stat:
    mode = found.st_mode
    return Stat(
        _KINDS.get(modes.S_IFMT(mode), StatKind.OTHER),
        _signed(found.st_ino),
        _signed(found.st_dev),
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        _executable(mode),
        found.st_nlink,
        getattr(found, "st_blocks", -1),
        mode & 0o777,
    )
