"""Folders on in-memory disks that exchange entries by hand: scan, intake and apply, no network."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import trio
import trio.testing

from crdt.errors import ShoalError
from crdt.ids import FolderId, ItemId
from crdt.roster_make import genesis_ops, share_ops
from crdt.roster_ops import Add, Role
from crdt.slot import BlockRef
from node.blocks.read import read_block
from node.files.memory import MemoryFileSystem
from node.files.port import FileSystem
from node.files.portable_names import Personality
from node.files.root_marker import make_layout
from node.history.keeper import History
from node.history.sealed import SealedBlocks
from node.index.database import open_database
from node.sync.afterlook import LOOKS_S, NS, Afterlook
from node.sync.apply import Apply
from node.sync.assemble import Assembler
from node.sync.base_texts import BaseTexts
from node.sync.bell import Bell
from node.sync.folder import Folder
from node.sync.intake import Intake
from node.sync.merge import Merges
from node.sync.merge_inquiry import AssembledTexts
from node.sync.patching import Patching
from node.sync.scan import Scan, ScanReport
from transport.identity import Identity

B = TypeVar("B", bound="Box")


HELD_MAX = 8  # looks at an item that is held up


class StepClock:
    """A clock that goes on by a millisecond whenever it is read."""

    def __init__(self) -> None:
        self.now_ns = 1_790_000_000 * 10**9

    def monotonic_s(self) -> float:
        """See `Clock`."""
        return trio.current_time()

    def wall_ns(self) -> int:
        """See `Clock`."""
        self.now_ns += 1_000_000
        return self.now_ns


class SeededRandom:
    """Randomness that repeats."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bytes(self, size: int) -> bytes:
        """See `Random`."""
        return self._random.randbytes(size)

    def uniform(self, low: float, high: float) -> float:
        """See `Random`."""
        return self._random.uniform(low, high)


class InlineThreads:
    """Runs at once, on the loop."""

    async def run(self, function, *args):  # type: ignore[no-untyped-def]
        """See `Threads`."""
        await trio.lowlevel.checkpoint()
        return function(*args)


class Box:
    """One device with one folder on one disk."""

    def __init__(self, seed: int, fs: MemoryFileSystem, clock: StepClock) -> None:
        self.fs = fs
        self.through: FileSystem | None = None  # what the node goes through, if not `fs` itself
        self.clock = clock
        self.random = SeededRandom(seed)
        self.identity = Identity.from_seed(self.random.bytes(32))
        self.database = open_database(None)
        self.others: list[Box] = []
        self.dirty: list[str] = []
        self.stops: list[str] = []  # why the folder was stopped
        self.merging = True
        self.kept = False  # whether others are said to keep what does not live here
        self._held: dict[ItemId, int] = {}
        self.fetched = 0  # blocks from other disks
        make_layout(fs)

    def open(self, folder: FolderId, bootstrap: Iterable[bytes] = ()) -> None:
        """Make the folder's state on an empty index."""
        self.folder = Folder(
            folder=folder,
            database=self.database,
            identity=self.identity,
            clock=self.clock,
            random=self.random,
            bootstrap=bootstrap,
            personality=self.fs.personality,
        )
        self.intake = Intake(self.folder)
        self.lock = trio.Lock()
        self.base_texts = BaseTexts(self.folder, self.fs, InlineThreads())
        self.sealed = SealedBlocks(self.folder, self.port, InlineThreads())
        self.history = History(
            self.folder, self.port, InlineThreads(), self.sealed, allowed=self._always
        )
        self.patching = self.make_patching()

    @property
    def port(self) -> FileSystem:
        """What the node goes through; people go through `fs`."""
        return self.through or self.fs

    async def _always(self) -> bool:
        return True

    # --- BlockSource ----------------------------------------------------------------------------

    async def block(
        self, ref: BlockRef, *, transfer_size: int, like: BlockRef | None = None
    ) -> bytes:
        """From any disk that has it."""
        for box in (self, *self.others):
            for place in box.folder.locations.find(ref.block):
                path = box.folder.disk.path(place.item)
                if path is None:
                    continue
                disk = self.port if box is self else box.fs
                try:
                    with disk.open_read(path) as handle:
                        data = read_block(handle, self.folder.block_key, ref, place.offset)
                except OSError:
                    continue
                if data is not None:
                    self.fetched += box is not self
                    return data
            stored = await box.sealed.read(ref.block)
            if stored is not None:
                return stored
        raise ShoalError("nobody has the block")

    async def node(self, ref: BlockRef, *, like: BlockRef | None = None) -> bytes:
        """From any index that has it."""
        for box in (self, *self.others):
            data = box.folder.locations.node(ref.block)
            if data is not None:
                return data
        raise ShoalError("nobody has the node")

    # --- steps ----------------------------------------------------------------------------------

    def make_scan(self) -> Scan:
        """A fresh run."""

        async def always() -> bool:
            return True

        return Scan(
            self.folder,
            self.port,
            InlineThreads(),
            self.lock,
            ignored=lambda path, _: path.split("/")[0] == ".shoal",
            may_delete=always,
        )

    async def scan(self, *paths: str) -> ScanReport:
        """Scan some paths, or everything."""
        scan = self.make_scan()
        if not paths:
            return await scan.everything()
        await scan.paths(paths)
        return await scan.finish()

    def take_from(self, other: Box) -> None:
        """Receive every entry that the other has and we lack."""
        while rows := other.folder.log.missing_from(self.folder.have, 1 << 20):
            before = self.folder.have
            self.intake.receive([row.entry for row in rows])
            assert self.folder.have != before, "no entry was taken"

    def make_assembler(self, fs: FileSystem) -> Assembler:
        """What brings files together on `fs`."""
        return Assembler(fs, InlineThreads(), self, self.folder.block_key)

    def make_patching(self) -> Patching:
        """What changes large files in place."""
        return Patching(self.folder, self.port, InlineThreads(), self.history.keep_blocks)

    async def apply(self, fs: FileSystem | None = None) -> Apply:
        """Carry out what is pending, until nothing moves."""
        assembler = self.make_assembler(fs or self.port)
        merges = Merges(
            self.folder,
            fs or self.port,
            InlineThreads(),
            self.lock,
            AssembledTexts(assembler, self.base_texts),
            wanted=lambda _path: self.merging,
            dirty=self.dirty.append,
            scanned=Bell(),
            allowed=lambda: True,
        )
        service = Apply(
            self.folder,
            fs or self.port,
            InlineThreads(),
            self.lock,
            assembler,
            ignored=lambda _path, _directory: False,
            dirty=self.dirty.append,
            allowed=lambda: not self.stops,
            patching=self.patching,
            stop=self.stops.append,
            held=lambda shown: merges.holds(shown) and self._has_patience(shown.item),
            kept=lambda _row: self.kept,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(merges.serve)
            nursery.start_soon(service.serve)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return service

    def _has_patience(self, item: ItemId) -> bool:
        """As if the time for which a merge may hold an item up were over after some applies."""
        self._held[item] = self._held.get(item, 0) + 1
        return self._held[item] <= HELD_MAX

    @contextlib.contextmanager
    def dying_before_it_records(self) -> Iterator[None]:
        """Within the block what the applier does reaches the disk, and nothing more the index."""
        self.database.connection.execute(
            "CREATE TEMP TRIGGER dying BEFORE INSERT ON disk "
            "BEGIN SELECT RAISE(ABORT, 'the process died'); END"
        )
        try:
            with contextlib.suppress(BaseExceptionGroup):
                yield
        finally:
            self.database.connection.execute("DROP TRIGGER dying")

    async def settle(self, *, rounds: int = 20, all_blocks: bool = True) -> None:
        """Scan and apply until the disk shows the view, as far as blocks are to be had."""
        for _ in range(rounds):
            await self.scan()
            await self.apply()
            await self.look_again()
            if not self.folder.pending and not self.dirty:
                return
            self.dirty.clear()
        assert not all_blocks, f"does not settle: {self.folder.pending}"

    async def look_again(self) -> None:
        """At what was displaced, as often as the node does in an hour."""
        service = Afterlook(
            self.folder, self.port, InlineThreads(), self.lock,
            noted=Bell(), found=lambda path, _: self.dirty.append(path),
        )  # fmt: skip
        now_ns = self.clock.now_ns
        for delay_s in itertools.accumulate(LOOKS_S):
            await service.look(now_ns + int((delay_s + 10) * NS))

    def displaced(self) -> set[object]:
        """The content of everything that was displaced and kept as a file."""
        return {
            what for path, what in self.fs.snapshot().items() if path.startswith(".shoal/history/")
        }

    def tree(self) -> dict[str, object]:
        """Path → content of everything that people see on this disk."""
        return {
            path: what
            for path, what in self.fs.snapshot().items()
            if path.split("/")[0] != ".shoal" and path
        }


def boxes(
    count: int, *, clock: StepClock | None = None, personalities: Sequence[Personality] = ()
) -> list[Box]:
    """Devices that are members of one folder already; all share one clock. The first ones' disks
    have `personalities`.
    """
    clock = clock or StepClock()
    disks = [
        MemoryFileSystem(clock=clock.wall_ns, personality=personality)
        for personality in (*personalities, *[Personality()] * (count - len(personalities)))
    ]
    return members([Box(number, fs, clock) for number, fs in enumerate(disks, 1)])


def members(made: list[B]) -> list[B]:
    """Make devices members of one folder."""
    owner = made[0]
    folder, ops = genesis_ops(
        owner.identity.device,
        "box 1",
        nonce=owner.random.bytes(32),
        epoch_secret=owner.random.bytes(32),
        seed=owner.random.bytes(32),
    )
    owner.open(folder)
    owner.folder.commit_roster(ops)
    others = [box.identity.device for box in made[1:]]
    owner.folder.commit_roster(
        [Add(device, Role.EDITOR, f"box {n}") for n, device in enumerate(others, 2)]
    )
    for op in share_ops(
        owner.folder.roster, owner.folder.keys, others, seed=owner.random.bytes(32)
    ):
        owner.folder.commit_roster([op])
    for box in made[1:]:
        box.open(folder, owner.folder.roster_entries)
    for box in made:
        box.others = [other for other in made if other is not box]
    return made


def exchange(*members: Box) -> None:
    """Everybody gets everybody's entries."""
    for _ in members:
        for one in members:
            for other in members:
                if one is not other:
                    one.take_from(other)
