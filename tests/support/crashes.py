"""Devices whose process stops at the n-th thing it does to its disk or its index.

A `Mortal` lives one life after the other over the same in-memory disk and the same index, as a node
does: recovery, a full scan, entries in, applies, until nothing is left to do. What it asks of disk
and index is counted; at the chosen operation the process is gone, with all that it
had in memory. What the disk remembers is the caller's choice: everything (the process was killed),
or what a power cut leaves. The index comes back as of its last commit.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from node.files.faulty import Crash, Fault, FaultPlan, FaultyFileSystem, Operation
from node.files.layout import STORE
from node.files.memory import MemoryFileSystem
from node.files.port import FileSystem
from node.index.database import Database
from node.sync.assemble import Assembler
from node.sync.effects import settle_effects
from node.sync.patching import Patching
from node.sync.recovery import recover
from tests.support.two_folders import Box, InlineThreads, SeededRandom, StepClock, members

MEMORY_SIZE_MAX = 100_000  # bytes; larger files are assembled on the disk
PATCH_SIZE_MIN = 500_000  # larger ones are changed in place
ROUNDS_MAX = 12  # of scan, entries and apply in one life
FRESH = itertools.count(1000)  # seeds: no twin draws what another drew
ALONE_NS = 60 * 10**9  # between two lives, so that a scan can be sure of what it sees


class CountingDatabase(Database):
    """Each commit is an operation, at which the process may stop."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self.plan = FaultPlan()
        self.on_commit: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """See `Database`."""
        with super().transaction() as connection:
            yield connection
            if self._depth == 1:
                self.plan.run(Operation.SYNC, "the index", lambda: None)
        if not self._depth:
            self.on_commit()


class Mortal(Box):
    """A device that can die."""

    database: CountingDatabase

    def __init__(self, seed: int, fs: MemoryFileSystem, clock: StepClock) -> None:
        super().__init__(seed, fs, clock)
        self.faults: list[Fault] = []  # of its disk, in each life
        self.database = CountingDatabase(self.database.connection)

    def make_plan(self, faults: list[Fault]) -> FaultPlan:
        """What shall happen in a life."""
        return FaultPlan(faults)

    async def live(
        self, *, until: int | None = None, saves: Callable[[], None] = lambda: None
    ) -> bool:
        """A whole life, or one that ends at operation number `until`, counted from 1.

        `saves` is what a person does soon after the start.

        Returns: True if nothing was left to do, False if death came first.
        """
        self.clock.now_ns += ALONE_NS
        self.dirty.clear()
        self.stops.clear()
        death = [Fault(None, nth=until)] if until else []
        self.plan = self.database.plan = self.make_plan([*self.faults, *death])
        self.through = FaultyFileSystem(self.fs, self.plan)
        try:
            await self._live(saves)
        except BaseExceptionGroup as group:
            if group.split(Crash)[1] is not None:
                raise
            return False
        except Crash:
            return False
        finally:
            self.through, self.database.plan = None, FaultPlan()
        return True

    async def _live(self, saves: Callable[[], None]) -> None:
        self.open(self.folder.id, self.folder.roster_entries)
        self.port.sync()
        self.notes = recover(self.folder, self.port, memory_size_max=MEMORY_SIZE_MAX)
        settle_effects(self.folder)
        self.folder.look_at_all()
        saves()
        await self.scan()
        with self.folder.transaction():
            self.folder.disk.forget_intents()
        for _ in range(ROUNDS_MAX):
            for other in self.others:
                self.take_from(other)
            await self.apply()
            if self.stops or (not self.folder.pending and not self.dirty):
                return
            self.dirty.clear()
            await self.scan()
        raise AssertionError(f"it does not settle: {self.folder.pending}")

    def make_assembler(self, fs: FileSystem) -> Assembler:
        """See `Box`."""
        return Assembler(
            fs,
            InlineThreads(),
            self,
            self.folder.block_key,
            memory_size_max=MEMORY_SIZE_MAX,
        )

    def make_patching(self) -> Patching:
        """See `Box`."""
        keep = self.history.keep_blocks
        return Patching(self.folder, self.port, InlineThreads(), keep, size_min=PATCH_SIZE_MIN)

    def twin(self, memo: dict[int, Any]) -> Mortal:
        """Another device in just this state; `memo` is one for all that know each other."""
        twin = copy.copy(self)
        twin.fs, twin.clock = copy.deepcopy((self.fs, self.clock), memo)
        twin.random = SeededRandom(next(FRESH))
        twin.dirty, twin.stops = [], []
        connection = sqlite3.connect(":memory:", isolation_level=None)
        self.database.connection.backup(connection)
        twin.database = CountingDatabase(connection)
        return twin

    def lose_power(self, seed: int) -> None:
        """While the process is dead: the disk forgets what it may."""
        self.fs.power_cut(random.Random(seed))

    def contents(self, *, below: str = "") -> set[bytes]:
        """Every file's bytes, those in `.shoal` included; of sealed blocks, whose bytes are never
        the same twice, the names.
        """
        return {
            path.encode() if path.startswith(STORE) else what
            for path, what in self.fs.snapshot().items()
            if isinstance(what, bytes) and path.startswith(below)
        }


def twins(boxes: Sequence[Mortal]) -> list[Mortal]:
    """Devices in just the state of `boxes`, to go another way from there. Between two lives."""
    memo: dict[int, Any] = {}
    made = [box.twin(memo) for box in boxes]
    for box in made:
        box.others = [other for other in made if other is not box]
        box.open(box.folder.id, box.folder.roster_entries)
    return made


def mortals(count: int, *, exchanges: bool = True, clones: bool = False) -> list[Mortal]:
    """Devices that are members of one folder already; all share one clock."""
    clock = StepClock()

    def disk() -> MemoryFileSystem:
        return MemoryFileSystem(clock=clock.wall_ns, exchanges=exchanges, clones=clones)

    return members([Mortal(n, disk(), clock) for n in range(1, count + 1)])
