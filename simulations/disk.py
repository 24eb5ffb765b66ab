"""One life of a node on its disk: what goes wrong there, and who comes in between.

The disk itself is a `MemoryFileSystem`, which knows what was synced and forgets the rest in a power
cut. A life ends with the process: from then on every operation raises `Crash`, so that what the
dying process still tries reaches nothing. Interruptions strike between two operations of the node:
a person's action, or the end of the process.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from node.files.faulty import Crash, Fault, FaultPlan, Operation
from node.index.database import Database

OPERATIONS_MAX: Final = 400_000  # of one life; more is a loop that never ends

READING: Final = frozenset(
    {
        Operation.SCANDIR,
        Operation.LSTAT,
        Operation.OPEN_READ,
        Operation.READLINK,
        Operation.FILE_STAT,
        Operation.FILE_READ_AT,
    }
)
SYNCING: Final = frozenset({Operation.FILE_FSYNC, Operation.FSYNC_DIRECTORY, Operation.SYNC})
NEVER: Final = frozenset({Operation.FREE_BYTES, Operation.IS_ATTACHED})
WRITING: Final = frozenset(Operation) - READING - SYNCING - NEVER
PLACING: Final = frozenset({Operation.RENAME, Operation.EXCHANGE})
IN_FLIGHT_S: Final = 1.0
KINDS: Final = {"reads": READING, "syncs": SYNCING, "writes": WRITING}


class EndlessError(BaseException):
    """A node that does something for ever without waiting. A bug, found by counting."""


@dataclass(slots=True)
class Armed:
    """A fault that waits: `skip` matching operations pass, then `times` of them fail."""

    error: int
    operations: frozenset[Operation]
    skip: int
    times: int
    after: bool = False


@dataclass(slots=True)
class Interruption:
    """Something that happens before the operation that comes after `skip` others."""

    skip: int
    strike: Callable[[], None]


@dataclass(slots=True)
class Life(FaultPlan):
    """What shall go wrong between one start of a node and its end."""

    note: Callable[[str], None] = lambda _line: None
    armed: list[Armed] = field(default_factory=list)
    interruptions: list[Interruption] = field(default_factory=list)
    struck: int = 0
    placed: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=100))

    def next_fault(self, operation: Operation, path: str) -> Fault | None:
        """See `FaultPlan`."""
        if self.crashed:
            raise Crash
        self._interrupt()
        self.counts[operation] += 1
        self.note(f"{operation} {path}")
        if operation in PLACING:
            self.placed.append((trio.current_time(), path))
        if self.counts[operation] > OPERATIONS_MAX:
            raise EndlessError(f"{OPERATIONS_MAX} times {operation}")
        for fault in self.armed:
            if operation in fault.operations:
                fault.skip -= 1
                if fault.skip < 0:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.armed.remove(fault)
                    self.struck += 1
                    self.note(f"  fails: {fault.error}")
                    return Fault(fault.error, after=fault.after)
        return None

    def _interrupt(self) -> None:
        for interruption in list(self.interruptions):
            interruption.skip -= 1
            if interruption.skip < 0:
                self.interruptions.remove(interruption)
                interruption.strike()
        if self.crashed:
            raise Crash

    def strike_all(self) -> None:
        """What waited for an operation that did not come happens now."""
        waiting, self.interruptions = self.interruptions, []
        for interruption in waiting:
            interruption.strike()

    def commit(self) -> None:
        """The index is about to commit; the process may die before it, or right after it."""
        self._interrupt()

    def in_flight(self) -> set[str]:
        """Where something was put so lately that the index may not know of it yet."""
        since = trio.current_time() - IN_FLIGHT_S
        return {path for at, path in self.placed if at >= since}


class SimDatabase(Database):
    """The index: durable at each commit, on a disk of its own. Dead processes commit nothing."""

    def __init__(self, connection: sqlite3.Connection, life: Life) -> None:
        super().__init__(connection)
        self._life = life

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """See `Database`."""
        outermost = not self.in_transaction
        if outermost and self._life.crashed:
            raise Crash
        with super().transaction() as connection:
            yield connection
            if outermost:
                self._life.commit()
        if outermost:
            self._life.commit()
