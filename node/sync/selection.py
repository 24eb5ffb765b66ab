"""Which directories live on this device: `shoal select`.

A directory that a person does not want here is *unselected*: it and all below it stay in the tree
and in the log, and leave this disk alone. What is hidden so never looks deleted, whoever removed
the local copy and whatever crash came in between: a scan writes no deletion for it.

A local copy goes only when another device durably keeps what it holds. Two devices may unselect one
directory at the same moment, each relying on the other, so a word of a peer counts only under three
conditions, of which the second is what makes a circle impossible:

1. It keeps everything: nothing is unselected there, and all of it has reached its disk since.
2. It said so after it had heard of our own selection, as it now is (`knows` is our `generation`).
   So it was whole at a time when we were not. If it leaves something out later, it needs the word
   of somebody who was whole later still; whoever comes last finds nobody, and keeps its copies.
3. It is connected, may write (a reader's disk may differ without a word), and its `complete` covers
   the version that lies here.

A relay never leaves anything out: that it holds all is enough.

The index keeps the set and the generation; both are durable before anybody hears of them.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

from crdt.codec import pack, unpack
from crdt.ids import ROOT, DeviceId, ItemId
from crdt.roster_ops import Role
from crdt.slot import Kind
from crdt.tree import ViewRow
from crdt.version_vector import EMPTY
from node.index.disk_rows import DiskRow
from node.index.view import TreeIndex
from transport.keeps import Keeps

if TYPE_CHECKING:
    from node.sync.engine import FolderEngine

_GENERATION: Final = "selection"  # key in `meta`


class Selection:
    """The unselected directories of one folder."""

    def __init__(self, db: sqlite3.Connection, tree: TreeIndex) -> None:
        self._db = db
        self._tree = tree
        self._items: set[ItemId] = set()
        self.generation = 0  # grows with every change; 0: there was none
        self.reload()

    def reload(self) -> None:
        """Read it again: at the start, and after a rollback."""
        rows = self._db.execute("SELECT item FROM unselected")
        self._items = {ItemId(item) for (item,) in rows}
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (_GENERATION,)).fetchone()
        self.generation = 0 if row is None else int(unpack(row[0], size_max=16))

    @property
    def active(self) -> bool:
        """True while anything is unselected."""
        return bool(self._items)

    def hides(self, shown: ViewRow | None) -> bool:
        """True when an item that the tree shows does not live on this disk."""
        return self.unselected_above(shown) is not None

    def unselected_above(self, shown: ViewRow | None) -> ItemId | None:
        """The unselected directory that is `shown`, or that it lies in; the topmost one."""
        found: ItemId | None = None
        while self._items and shown is not None:
            if shown.content.kind is Kind.DIRECTORY:
                # Directories of one name are shown as one: what is said of it is said of them all.
                members = self._tree.members(shown.item)
                found = shown.item if self._items.intersection(members) else found
            shown = None if shown.parent == ROOT else self._tree.row(shown.parent)
        return found

    def paths(self) -> list[str]:
        """The unselected directories that the tree shows, sorted."""
        faces = {self._tree.representative(item) for item in self._items}
        return sorted(path for face in faces if (path := self._tree.path(face)))

    def unselect(self, item: ItemId) -> None:
        """A directory shall not live here. In the caller's transaction."""
        self._db.execute("INSERT OR IGNORE INTO unselected VALUES (?)", (item,))
        self._changed()

    def select(self, item: ItemId) -> None:
        """A directory shall live here again. In the caller's transaction."""
        for one in self._tree.members(item):
            self._db.execute("DELETE FROM unselected WHERE item = ?", (one,))
        self._changed()

    def _changed(self) -> None:
        value = pack(self.generation + 1)
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_GENERATION, value))
        self.reload()


class Keepers:
    """Who keeps what for us: see the module. What peers said counts while they are connected."""

    def __init__(self, engine: FolderEngine) -> None:
        self._engine = engine
        self._told: dict[DeviceId, Keeps] = {}

    def word_for(self, peer: DeviceId) -> Keeps | None:
        """What to tell a member of what we keep; None while nobody leaves anything out."""
        folder, told = self._engine.folder, self._told.get(peer)
        generation = folder.selection.generation
        knows = 0 if told is None else told.generation
        if not generation and not knows:
            return None
        return Keeps(generation, knows, folder.is_whole)

    def told(self, peer: DeviceId, keeps: Keeps) -> None:
        """A member told what it keeps."""
        if self._told.get(peer) != keeps:
            self._told[peer] = keeps
            self._engine.changed.ring()
            self.look_again()

    def gone(self, peer: DeviceId) -> None:
        """The connection ended, and with it what was said on it."""
        self._told.pop(peer, None)

    def look_again(self) -> None:
        """Somebody told something: a copy that waits to leave this disk may be kept elsewhere."""
        folder = self._engine.folder
        if folder.selection.active and folder.pending:
            folder.work.ring()

    def is_partial(self, peer: DeviceId) -> bool:
        """True when the peer said that it does not keep everything."""
        told = self._told.get(peer)
        return told is not None and not told.whole

    def keeps(self, row: DiskRow) -> bool:
        """True when another device durably keeps what lies here as `row`."""
        if row.version == EMPTY:
            return False
        return any(self._keeps(peer, row) for peer in self._engine.folder.roster.members)

    def _keeps(self, device: DeviceId, row: DiskRow) -> bool:
        engine = self._engine
        roster, peer, told = engine.folder.roster, engine.peers.get(device), self._told.get(device)
        if device == engine.folder.identity.device or peer is None or not peer.connected:
            return False
        if roster.role(device) is Role.RELAY:
            return engine.relays.holds_all(device)
        return (
            told is not None
            and told.whole
            and told.knows == engine.folder.selection.generation
            and roster.may_write(device)
            and peer.complete.dominates(row.version)
        )
