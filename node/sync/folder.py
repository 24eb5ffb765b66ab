"""One synced folder's state: log, tree, disk rows, roster, keys, and which items need work.

It changes in three ways, each one SQLite transaction, and all of it synchronous on the event loop,
so that nothing slips in between a look and a write:

- `node.sync.commit` turns what a scan found into entries of our own,
- `node.sync.intake` takes other devices' entries in,
- `node.sync.place` records what was done on the disk.

When a transaction returns, its entries are durable and may be sent or acknowledged. A process that
dies in it has changed nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from crdt import entry as entries
from crdt.ids import DeviceId, FolderId, ItemId
from crdt.roster import Roster
from crdt.roster_ops import Op, pack_ops
from crdt.slot import Kind
from crdt.tree import ViewRow
from crdt.version_vector import EMPTY, VersionVector
from node.blocks.locate import Locations
from node.files.port import StatKind
from node.files.portable_names import Personality
from node.index.damage import UNREADABLE, unreadable
from node.index.database import Database
from node.index.disk_rows import DiskRow, DiskRows
from node.index.log import Log
from node.index.view import TreeIndex
from node.ports import Clock, Random
from node.sync.bell import Bell
from node.sync.describe import Job
from node.sync.fresh import Fresh
from node.sync.names import PLAIN, Names
from node.sync.planner import Plan, plan_item
from node.sync.selection import Selection
from node.sync.unkept import Unkept
from transport.identity import Identity


class Folder:
    """State of one folder: log, tree, disk rows, roster, keys, and which items need work."""

    def __init__(
        self,
        *,
        folder: FolderId,
        database: Database,
        identity: Identity,
        clock: Clock,
        random: Random,
        invitation_seed: bytes | None = None,
        bootstrap: Iterable[bytes] = (),
        personality: Personality = PLAIN,
    ) -> None:
        """Args:
        bootstrap: Roster entries known from joining, before the log holds them; their signatures
            have been checked.
        personality: How this disk treats names.
        """
        self.id = folder
        self.database = database
        self.identity = identity
        self.clock = clock
        self.random = random
        self._seeds = [identity.seed] + ([invitation_seed] if invitation_seed else [])
        self._bootstrap = [entries.Entry.from_bytes(data) for data in bootstrap]
        self.log = Log(database.connection)
        self.tree = TreeIndex(database.connection)
        self.disk = DiskRows(database.connection)
        self.locations = Locations(database.connection)
        self.selection = Selection(database.connection, self.tree)
        self.names = Names(self.disk, self.tree, personality)
        self.pending: dict[ItemId, int] = {}  # items to work on -> bytes to come; oldest first
        self.revisited: set[ItemId] = set()  # looked at since the applier last took note
        self._looked: set[ItemId] = set()  # looked at in this transaction
        self.advanced = Bell()  # rings when the log or `complete` grew
        self.work = Bell()  # rings when what is pending may be another thing now
        self.displaced = Bell()  # rings when something reached `.shoal/history`
        self.fresh = Fresh()
        self.unkept = Unkept()
        self._complete = EMPTY
        self._leaving: set[ItemId] = set()  # hidden items whose local copy is not removed yet
        self._whole = False
        self.leaves_out = False  # something that the tree shows is ignored on this disk
        self.reload_roster()

    # --- the roster ---------------------------------------------------------------------------

    def reload_roster(self) -> None:
        """Fold the roster again: after a roster entry came in, or a rollback."""
        known = {entry.hash: entry for entry in self._bootstrap}
        try:
            held = [entries.Entry.from_bytes(data) for data in self.log.roster_entries()]
        except UNREADABLE as error:
            raise unreadable("a roster entry", error) from error
        known.update((entry.hash, entry) for entry in held)
        self._roster_is_held = len(held) == len(known)
        self.roster = Roster.fold(self.id, known.values())
        self.keys = self.roster.keys(*self._seeds)
        self.roster_entries = tuple(entry.to_bytes() for entry in known.values())

    @property
    def block_key(self) -> bytes:
        """Keys the hash that names this folder's blocks."""
        return self.keys.block_id_key

    @property
    def roster_is_held(self) -> bool:
        """True when all that we know of the roster lies in our log: we may write to it."""
        return self._roster_is_held

    def opens_all_itself(self) -> bool:
        """True when the invitation's secret opens nothing that our own key does not."""
        own = self.roster.keys(self.identity.seed)
        return self._roster_is_held and own.epochs.keys() >= self.roster.epochs.keys()

    def name_of(self, device: DeviceId) -> str:
        """What people call a device that is or was in the roster."""
        known = self.roster.members.get(device) or self.roster.removed.get(device)
        return device.short if known is None else known.name

    def commit_roster(self, operations: Iterable[Op]) -> None:
        """Write a roster entry of our own; durable when it returns."""
        entry = entries.build(
            self.identity.seed,
            folder=self.id,
            after=self.log.position(self.identity.device),
            deps=self.log.have,
            lamport=self.log.lamport + 1,
            kind=entries.EntryKind.ROSTER,
            body=pack_ops(operations),
        )
        with self.transaction():
            self.log.append(entry, time_ms=max(0, self.clock.wall_ns() // 1_000_000))
        self.reload_roster()
        self.advanced.ring()

    # --- what is here ---------------------------------------------------------------------------

    @property
    def have(self) -> VersionVector:
        """What is durable here: device → seq."""
        return self.log.have

    @property
    def complete(self) -> VersionVector:
        """The newest log position whose whole content lies on this disk."""
        if not self.pending:
            self._complete = self.log.have
            self._whole = not self.selection.active
        return self._complete

    @property
    def is_whole(self) -> bool:
        """True when all up to `complete` lies on this disk, and nothing is left out on purpose."""
        return self._whole and not self.leaves_out

    # --- what lives here ------------------------------------------------------------------------

    def hides(self, item: ItemId) -> bool:
        """True when the tree shows the item, and it does not live on this disk."""
        return self.selection.active and self.selection.hides(self.tree.row(item))

    def choose(self, item: ItemId, *, lives_here: bool) -> None:
        """Let a directory live on this disk, or not; durable when it returns."""
        with self.transaction():
            if lives_here:
                self.selection.select(item)
            else:
                self.selection.unselect(item)
            self._whole = False
            self.look_at([item])
        self.work.ring()

    def new_item(self) -> ItemId:
        """A fresh item id."""
        return ItemId(self.random.bytes(16))

    def directory_item(self, parent: ItemId, name: str) -> ItemId:
        """The item of a directory just found: one that the view shows there, or a fresh one."""
        row = self.shown_at(parent, name)
        if (
            row is not None
            and row.content.kind is Kind.DIRECTORY
            and self.disk.get(row.item) is None
            and not self.selection.hides(row)
        ):
            return row.item
        return self.new_item()

    def shown_at(self, parent: ItemId, name: str) -> ViewRow | None:
        """What the view shows where something unknown was found on this disk."""
        face = self.tree.representative(parent)
        shown = self.tree.child(face, self.names.in_tree(name))
        return self.names.behind(face, name) if shown is None else shown

    def reading_job(self, path: str, kind: StatKind, row: DiskRow | None) -> Job:
        """How to read a path: from the content and blocks that it had, where `row` knows them."""
        if row is None or not row.profile or kind is not StatKind.FILE:
            return Job(path, kind)
        slots = self.tree.slots(row.item).values()
        contents = (slot.content for slot in slots if slot.content is not None)
        previous = next((one for one in contents if one.version == row.version), None)
        return Job(path, kind, previous, tuple(self.locations.blocks_of(row.item)))

    # --- what needs work --------------------------------------------------------------------

    def look_at(self, items: Iterable[ItemId]) -> None:
        """Compare the view rows of `items` with their disk rows; what differs becomes pending."""
        work = False
        with self.transaction():
            # Never in the order of a set: what a simulation finds must be found again.
            for first in sorted(items) if isinstance(items, set) else items:
                stack = [first]
                while stack:
                    item = stack.pop()
                    before = item in self.pending
                    stack += self._look_at(item)
                    # What is pending already may be on its way in a version that nobody has any
                    # more.
                    work = work or before or item in self.pending
        if work:
            self.work.ring()

    def _look_at(self, item: ItemId) -> list[ItemId]:
        """Returns what must be looked at, too."""
        self._looked.add(item)
        was_leaving = item in self._leaving
        shown, plan = self._plan(item)
        if plan.note and shown is not None and not plan.touches_disk:
            self.disk.note(item, shown.content.version, shown.revision)
        # What lies below a directory goes and comes with it, though nothing was written about it.
        if plan.release:
            return sorted(row.item for row in self.disk.children(item).values())
        is_directory = shown is not None and shown.content.kind is Kind.DIRECTORY
        if is_directory and (was_leaving or (plan.create and self.selection.generation)):
            return sorted(row.item for row in self.tree.children(item))
        return []

    def plan(self, item: ItemId) -> tuple[ViewRow | None, DiskRow | None, Plan]:
        """What the view wants of an item, what this disk has of it, and what is to be done."""
        shown, row = self.tree.row(item), self.disk.get(item)
        hidden = self.selection.active and self.selection.hides(shown)
        return shown, row, plan_item(shown, row, self.disk_name(shown), hidden=hidden)

    def _plan(self, item: ItemId) -> tuple[ViewRow | None, Plan]:
        """Plan one item and make `pending` say so."""
        shown, _, plan = self.plan(item)
        (self._leaving.add if plan.release else self._leaving.discard)(item)
        self.revisited.add(item)
        if plan.touches_disk:
            arrives = shown is not None and (plan.create or plan.content)
            self.pending[item] = shown.content.size if arrives and shown is not None else 0
        else:
            self.pending.pop(item, None)
        return shown, plan

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One index transaction; what is kept in memory follows a rollback."""
        if self.database.in_transaction:
            yield  # what happens to the outer one happens to all
            return
        try:
            with self.database.transaction():
                yield
        except BaseException:
            self.log.reload()
            self.reload_roster()
            self.selection.reload()
            for item in self._looked:
                self._plan(item)
            raise
        finally:
            self._looked.clear()

    def look_at_all(self) -> None:
        """Compare every view row with its disk row: at the start, once."""
        with self.transaction():
            self.look_at(self.tree.all_items())
            self.look_at(list(self.disk.all_items()))
        self.advanced.ring()

    def disk_name(self, shown: ViewRow | None) -> str | None:
        """The name that this disk gives a row where it cannot hold the row's own; else None."""
        return self.names.on_disk(shown)
