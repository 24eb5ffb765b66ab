"""A file system that fails on purpose: any port behind it, any operation, chosen in advance.

A `FaultPlan` lists faults; each waits for the n-th matching operation and then raises its error
or stops "the process": from a crash on, every operation raises `Crash`, which no `except Exception`
catches, and nothing reaches the disk any more. The plan counts everything that passes, so a first
run without faults tells how many places there are to fail at.

Deterministic if its caller is. One thread.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from node.files.disk import DiskFile
from node.files.memory_file import MemoryFile
from node.files.port import AloneHandle, Entry, FileSystem, ReadHandle, Stat, WriteHandle

T = TypeVar("T")
P = ParamSpec("P")


class Operation(enum.StrEnum):
    """What can fail; those of handles begin with `file_`."""

    SCANDIR = enum.auto()
    LSTAT = enum.auto()
    OPEN_READ = enum.auto()
    CREATE = enum.auto()
    OPEN_WRITE = enum.auto()
    OPEN_ALONE = enum.auto()
    CLONE = enum.auto()
    MKDIR = enum.auto()
    RMDIR = enum.auto()
    UNLINK = enum.auto()
    SYMLINK = enum.auto()
    READLINK = enum.auto()
    RENAME = enum.auto()
    EXCHANGE = enum.auto()
    SET_METADATA = enum.auto()
    FSYNC_DIRECTORY = enum.auto()
    SYNC = enum.auto()
    FREE_BYTES = enum.auto()
    IS_ATTACHED = enum.auto()
    FILE_STAT = enum.auto()
    FILE_READ_AT = enum.auto()
    FILE_WRITE_AT = enum.auto()
    FILE_TRUNCATE = enum.auto()
    FILE_FSYNC = enum.auto()
    FILE_SET_METADATA = enum.auto()


class Crash(BaseException):
    """The process stopped. No Exception: it is nobody's error to handle."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Fail matching operations number `nth` to `nth + times - 1`, counted from 1.

    `error` is an errno, or None for a crash. `after` lets the operation happen first: it is done
    but nobody hears of it. A write that meets ENOSPC or a crash writes its first half.
    """

    error: int | None
    operation: Operation | None = None  # None: any
    path: str | None = None  # exactly this one, or below it; None: any
    nth: int = 1
    times: int = 1
    after: bool = False


@dataclass(slots=True)
class FaultPlan:
    """What shall fail, and what has happened so far."""

    faults: list[Fault] = field(default_factory=list)
    counts: Counter[Operation] = field(default_factory=Counter)
    crashed: bool = False
    _seen: Counter[Fault] = field(default_factory=Counter)

    @property
    def operations(self) -> int:
        """How many operations were asked for, failed ones included."""
        return self.counts.total()

    def next_fault(self, operation: Operation, path: str) -> Fault | None:
        """Count one operation; the fault that strikes it."""
        if self.crashed:
            raise Crash
        self.counts[operation] += 1
        struck = None
        for fault in self.faults:
            if fault.operation not in (None, operation):
                continue
            if fault.path is not None and not f"{path}/".startswith(f"{fault.path}/"):
                continue
            self._seen[fault] += 1
            if fault.nth <= self._seen[fault] < fault.nth + fault.times:
                struck = struck or fault
        return struck

    def run(
        self,
        operation: Operation,
        path: str,
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """`function(...)`, unless a fault strikes."""
        fault = self.next_fault(operation, path)
        if fault is None:
            return function(*args, **kwargs)
        if fault.after:
            result = function(*args, **kwargs)
            if isinstance(result, DiskFile):
                result.close()  # nobody else will
        if fault.error is None:
            self.crashed = True
            raise Crash
        raise OSError(fault.error, os.strerror(fault.error), path)


class FaultyFileSystem:
    """`FileSystem` over `inner`, failing as `plan` says."""

    def __init__(self, inner: FileSystem, plan: FaultPlan | None = None) -> None:
        self.inner = inner
        self.plan = plan or FaultPlan()

    def scandir(self, path: str) -> list[Entry]:
        """See `FileSystem`."""
        return self.plan.run(Operation.SCANDIR, path, self.inner.scandir, path)

    def lstat(self, path: str) -> Stat:
        """See `FileSystem`."""
        return self.plan.run(Operation.LSTAT, path, self.inner.lstat, path)

    def open_read(self, path: str) -> FaultyReadFile:
        """See `FileSystem`."""
        file = self.plan.run(Operation.OPEN_READ, path, self.inner.open_read, path)
        return FaultyReadFile(file, path, self.plan)

    def create(self, path: str, *, executable: bool = False) -> FaultyWriteFile:
        """See `FileSystem`."""
        file = self.plan.run(Operation.CREATE, path, self.inner.create, path, executable=executable)
        return FaultyWriteFile(file, path, self.plan)

    def open_write(self, path: str) -> FaultyWriteFile:
        """See `FileSystem`."""
        file = self.plan.run(Operation.OPEN_WRITE, path, self.inner.open_write, path)
        return FaultyWriteFile(file, path, self.plan)

    def open_alone(self, path: str) -> FaultyAloneFile:
        """See `FileSystem`."""
        file = self.plan.run(Operation.OPEN_ALONE, path, self.inner.open_alone, path)
        return FaultyAloneFile(file, path, self.plan)

    def clone(self, source: str, target: str) -> None:
        """See `FileSystem`."""
        self.plan.run(Operation.CLONE, target, self.inner.clone, source, target)

    def mkdir(self, path: str, *, private: bool = False) -> None:
        """See `FileSystem`."""
        self.plan.run(Operation.MKDIR, path, self.inner.mkdir, path, private=private)

    def rmdir(self, path: str) -> None:
        """See `FileSystem`."""
        self.plan.run(Operation.RMDIR, path, self.inner.rmdir, path)

    def unlink(self, path: str) -> None:
        """See `FileSystem`."""
        self.plan.run(Operation.UNLINK, path, self.inner.unlink, path)

    def symlink(self, target: str, path: str) -> None:
        """See `FileSystem`."""
        self.plan.run(Operation.SYMLINK, path, self.inner.symlink, target, path)

    def readlink(self, path: str) -> str:
        """See `FileSystem`."""
        return self.plan.run(Operation.READLINK, path, self.inner.readlink, path)

    def rename(self, source: str, target: str) -> None:
        """See `FileSystem`. Faults match the target's path."""
        self.plan.run(Operation.RENAME, target, self.inner.rename, source, target)

    def exchange(self, first: str, second: str) -> None:
        """See `FileSystem`. Faults match the second path."""
        self.plan.run(Operation.EXCHANGE, second, self.inner.exchange, first, second)

    def set_metadata(
        self, path: str, *, mtime_ns: int | None = None, executable: bool | None = None
    ) -> None:
        """See `FileSystem`."""
        self.plan.run(
            Operation.SET_METADATA,
            path,
            self.inner.set_metadata,
            path,
            mtime_ns=mtime_ns,
            executable=executable,
        )

    def fsync_directory(self, path: str) -> None:
        """See `FileSystem`."""
        self.plan.run(Operation.FSYNC_DIRECTORY, path, self.inner.fsync_directory, path)

    def sync(self) -> None:
        """See `FileSystem`."""
        self.plan.run(Operation.SYNC, "", self.inner.sync)

    def free_bytes(self) -> int:
        """See `FileSystem`."""
        return self.plan.run(Operation.FREE_BYTES, "", self.inner.free_bytes)

    def identity(self) -> tuple[int, int]:
        """See `FileSystem`; never fails, it only remembers."""
        return self.inner.identity()

    def is_attached(self) -> bool:
        """See `FileSystem`."""
        return self.plan.run(Operation.IS_ATTACHED, "", self.inner.is_attached)

    def close(self) -> None:
        """See `FileSystem`; never fails."""
        self.inner.close()


class FaultyReadFile:
    """`ReadHandle` over another. Closing never fails, not even after a crash: it changes
    nothing.
    """

    def __init__(self, file: ReadHandle, path: str, plan: FaultPlan) -> None:
        self._file = file
        self._path = path
        self._plan = plan

    def stat(self) -> Stat:
        """See `ReadHandle`."""
        return self._plan.run(Operation.FILE_STAT, self._path, self._file.stat)

    def read_at(self, offset: int, size: int) -> bytes:
        """See `ReadHandle`."""
        read = self._file.read_at
        return self._plan.run(Operation.FILE_READ_AT, self._path, read, offset, size)

    def fsync(self) -> None:
        """See `ReadHandle`. A failure leaves what the kernel leaves: data that is not written, in
        pages that count as clean.
        """
        try:
            self._plan.run(Operation.FILE_FSYNC, self._path, self._file.fsync)
        except OSError:
            if isinstance(self._file, MemoryFile):
                self._file.fail_fsync()
            raise

    def close(self) -> None:
        """See `ReadHandle`."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class FaultyWriteFile(FaultyReadFile):
    """`WriteHandle` over another."""

    def __init__(self, file: WriteHandle, path: str, plan: FaultPlan) -> None:
        super().__init__(file, path, plan)
        self._writable = file

    def write_at(self, offset: int, data: bytes) -> None:
        """See `WriteHandle`."""
        dead = self._plan.crashed
        write = self._writable.write_at
        try:
            self._plan.run(Operation.FILE_WRITE_AT, self._path, write, offset, data)
        except (OSError, Crash) as error:
            # Half of it gets through when a disk fills up, or when the process is killed.
            if not dead and (isinstance(error, Crash) or error.errno == errno.ENOSPC):
                with contextlib.suppress(OSError):
                    write(offset, data[: len(data) // 2])
            raise

    def truncate(self, size: int) -> None:
        """See `WriteHandle`."""
        self._plan.run(Operation.FILE_TRUNCATE, self._path, self._writable.truncate, size)

    def set_metadata(
        self,
        *,
        mtime_ns: int | None = None,
        executable: bool | None = None,
        permissions: int | None = None,
    ) -> None:
        """See `WriteHandle`."""
        self._plan.run(
            Operation.FILE_SET_METADATA,
            self._path,
            self._writable.set_metadata,
            mtime_ns=mtime_ns,
            executable=executable,
            permissions=permissions,
        )


class FaultyAloneFile(FaultyWriteFile):
    """`AloneHandle` over another."""

    def __init__(self, file: AloneHandle, path: str, plan: FaultPlan) -> None:
        super().__init__(file, path, plan)
        self._alone = file

    def settle(self) -> bool:
        """See `AloneHandle`; never fails."""
        return self._alone.settle()
