"""System calls that Python does not wrap: openat2, renameat2 (macOS: renameatx_np), syncfs.

Each raises OSError like its neighbours in `os`; where the system lacks the call, with ENOSYS. They
are called through ctypes, which lets go of the interpreter lock meanwhile; any thread may call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
from typing import Final

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08

_LINUX: Final = sys.platform.startswith("linux")
_FICLONE: Final = 0x40049409
_OPENAT2: Final = 437  # the same on every architecture that still runs, alpha aside
_NOREPLACE, _EXCHANGE = (1, 2) if _LINUX else (4, 2)  # RENAME_* on Linux; RENAME_EXCL, _SWAP on Mac


class _OpenHow(ctypes.Structure):
    """struct open_how of linux/openat2.h."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = None if sys.platform == "win32" else ctypes.CDLL(None, use_errno=True)
_rename = getattr(_libc, "renameat2" if _LINUX else "renameatx_np", None)
_syncfs = getattr(_libc, "syncfs", None)
_HOW_SIZE: Final = ctypes.sizeof(_OpenHow)


def openat2(path: str, flags: int, resolve: int, *, dir_fd: int) -> int:
    """Open with `resolve` restrictions; a new file descriptor, closed on exec."""
    if _libc is None or not _LINUX:
        raise OSError(errno.ENOSYS, "no openat2 here", path)
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    raw = os.fsencode(path)
    while True:
        fd: int = _libc.syscall(_OPENAT2, dir_fd, raw, ctypes.byref(how), _HOW_SIZE)
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), path)


def rename_noreplace(source: str, target: str, *, source_fd: int, target_fd: int) -> None:
    """Rename unless `target` exists. EINVAL, ENOSYS or ENOTSUP where the disk cannot tell."""
    _renameat(source, target, source_fd, target_fd, _NOREPLACE)


def rename_exchange(first: str, second: str, *, first_fd: int, second_fd: int) -> None:
    """Swap two names. EINVAL, ENOSYS or ENOTSUP where the disk cannot."""
    _renameat(first, second, first_fd, second_fd, _EXCHANGE)


def _renameat(source: str, target: str, source_fd: int, target_fd: int, flags: int) -> None:
    if _rename is None:
        raise OSError(errno.ENOSYS, "no renameat2 here", source)
    raw_source, raw_target = os.fsencode(source), os.fsencode(target)
    if _rename(source_fd, raw_source, target_fd, raw_target, ctypes.c_uint(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source, None, target)


def syncfs(fd: int) -> None:
    """Flush the file system that `fd` lies on; all of them, where the system lacks the call."""
    if _syncfs is None:
        os.sync()
    elif _syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def lease(fd: int) -> None:
    """Keep a file to ourselves until `fd` is closed: others' `open` waits, 45 s at most.

    Raises:
        OSError: EAGAIN: somebody has it open; ENOTSUP or EINVAL: there are no leases here.
    """
    if not _LINUX:
        raise OSError(errno.ENOTSUP, "no leases here")
    import fcntl  # noqa: PLC0415 - exists on POSIX only

    # Whoever waits makes the kernel send a signal; the default one would end the process.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)


def clone(source: int, target: int) -> None:
    """Let `target` share all of `source`'s place on the disk; EOPNOTSUPP where it cannot."""
    if not _LINUX:
        raise OSError(errno.EOPNOTSUPP, "no clones here")
    import fcntl  # noqa: PLC0415 - exists on POSIX only

    fcntl.ioctl(target, _FICLONE, source)
