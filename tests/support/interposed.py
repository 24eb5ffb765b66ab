"""A file system that lets something happen right before a chosen operation: races without chance.

Whatever a scan or an apply asks of the disk is an *operation*, those of open files included. They
are counted; `before` is called with each one's number and name, and may do to the disk beneath what
a person would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Self

OPERATIONS: Final = {
    *("scandir", "lstat", "open_read", "create", "open_write", "mkdir", "rmdir", "unlink"),
    *("symlink", "readlink", "rename", "exchange", "set_metadata", "fsync_directory", "sync"),
    *("stat", "read_at", "write_at", "truncate", "fsync"),
}


class Interposed:
    """Any `FileSystem` or handle. What is no operation of the port passes through uncounted."""

    def __init__(self, inner: Any, before: Callable[[str], None]) -> None:
        self._inner = inner
        self._before = before

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in OPERATIONS:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._before(name)
            result = found(*args, **kwargs)
            handle = name in {"open_read", "open_write", "create"}
            return Interposed(result, self._before) if handle else result

        return call

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inner.close()


class Script:
    """Lets `act` happen before operation number `at`, counted from 1."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.at = at
        self.act = act
        self.names: list[str] = []  # of the operations so far
        self.acted_before = ""  # the name of the operation, once it has happened

    @property
    def done_in_time(self) -> bool:
        """False if there were fewer operations."""
        return len(self.names) >= self.at

    def __call__(self, name: str) -> None:
        """An operation is about to happen."""
        self.names.append(name)
        if len(self.names) == self.at:
            self.finish(name)

    def finish(self, name: str = "nothing more") -> None:
        """Act now, unless that was done."""
        if not self.acted_before:
            self.acted_before = name
            self.act()
