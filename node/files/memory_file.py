"""An open file of `node.files.memory`."""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Protocol, Self

from node.files.memory_inode import DEVICE, Inode
from node.files.port import Stat


class Owner(Protocol):
    """What a file needs of its file system."""

    generation: int  # grows with each power cut

    def now_ns(self) -> int:
        """The time."""
        ...

    def resize(self, inode: Inode, size: int) -> None:
        """Make the data `size` bytes long, or raise ENOSPC."""
        ...

    def notify(self, inode: Inode) -> None:
        """It was written."""
        ...


class MemoryFile:
    """An open file: `ReadHandle`, `WriteHandle` and `AloneHandle`."""

    def __init__(self, fs: Owner, inode: Inode) -> None:
        self._fs: Owner | None = fs
        self._generation = fs.generation
        self._inode = inode
        inode.opened += 1

    def settle(self) -> bool:
        """See `AloneHandle`."""
        return True

    def stat(self) -> Stat:
        """See `ReadHandle`."""
        self._alive()
        return self._inode.stat(DEVICE)

    def read_at(self, offset: int, size: int) -> bytes:
        """See `ReadHandle`."""
        self._alive()
        return bytes(self._inode.data[offset : offset + size])

    def write_at(self, offset: int, data: bytes) -> None:
        """See `WriteHandle`."""
        fs, end = self._alive(), offset + len(data)
        if not data:
            return
        if end > len(self._inode.data):
            fs.resize(self._inode, end)
        self._inode.data[offset:end] = data
        self._changed(fs)

    def truncate(self, size: int) -> None:
        """See `WriteHandle`."""
        fs = self._alive()
        fs.resize(self._inode, size)
        self._changed(fs)

    def fsync(self) -> None:
        """See `ReadHandle`."""
        self._alive()
        self._inode.save()

    def fail_fsync(self) -> None:
        """What a failed fsync leaves: pages marked clean that never reached the disk."""
        self._alive()
        self._inode.dirty = False

    def set_metadata(
        self,
        *,
        mtime_ns: int | None = None,
        executable: bool | None = None,
        permissions: int | None = None,
    ) -> None:
        """See `WriteHandle`."""
        fs, inode = self._alive(), self._inode
        if permissions is not None:
            inode.mode = permissions & 0o777
        if executable is not None and executable != inode.executable:
            readable = (inode.mode & 0o444) >> 2
            inode.mode = inode.mode | readable if executable else inode.mode & ~0o111
        if mtime_ns is not None:
            inode.mtime_ns = mtime_ns
        inode.ctime_ns = fs.now_ns()
        inode.dirty = True
        fs.notify(inode)

    def close(self) -> None:
        """See `ReadHandle`."""
        if self._fs is not None and self._generation == self._fs.generation:
            self._inode.opened -= 1
        self._fs = None

    def _alive(self) -> Owner:
        if self._fs is None or self._generation != self._fs.generation:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._fs

    def _changed(self, fs: Owner) -> None:
        self._inode.mtime_ns = self._inode.ctime_ns = fs.now_ns()
        self._inode.dirty = True
        fs.notify(self._inode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
