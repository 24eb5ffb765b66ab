"""What items are called on this disk, where it cannot hold the names of the tree.

The tree holds exact names. A disk that folds case or Unicode forms together, or forbids some names,
shows an item under an *alias* (`node.files.portable_names`). Which item that is stands in its disk
row: `name` is what the disk says, `shown_name` what the tree says. An alias stays as long as the
item keeps its place and its name in the tree; it means nothing elsewhere and is never written
there.

Pure but for the index. On a disk that holds every name as it is, nothing here asks anything.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from crdt.ids import ItemId
from crdt.tree import ViewRow
from node.files.portable_names import Personality, alias, local_name
from node.index.disk_rows import DiskRow, DiskRows
from node.index.view import TreeIndex

PLAIN: Final = Personality()
_ALIAS: Final = re.compile(r"~[0-9a-f]{4,16}(\.|$)")


class Names:
    """Names of one folder on one disk, both ways."""

    def __init__(self, disk: DiskRows, tree: TreeIndex, personality: Personality) -> None:
        self._disk = disk
        self._tree = tree
        self.personality = personality
        self.plain = personality == PLAIN
        self.folds = personality.folds_case or personality.folds_unicode
        disk.fold_by(personality.key if self.folds else None)

    def on_disk(self, shown: ViewRow | None) -> str | None:
        """The alias of an item that the tree shows; None where the disk can hold its own name."""
        if self.plain or shown is None:
            return None
        row = self._disk.get(shown.item)
        if row is not None and (row.parent, row.shown_name) == (shown.parent, shown.name):
            return row.name

        def taken(name: str) -> bool:
            rows = self._disk.lying_at(shown.parent, name)
            return any(row.item != shown.item and self._stays(row) for row in rows)

        try:
            name = local_name(shown.name, taken, self.personality)
        except ValueError:
            return None  # the disk will say what is wrong with it
        return None if name == shown.name else name

    def _stays(self, row: DiskRow) -> bool:
        """True when the tree wants the item where it lies, under the name it has."""
        shown = self._tree.row(row.item)
        return shown is not None and (shown.parent, shown.name) == (row.parent, row.shown_name)

    def occupant(self, parent: ItemId, name: str, item: ItemId) -> DiskRow | None:
        """What else than `item` lies at `name`, or at a name that this disk takes for the same."""
        rows = self._disk.lying_at(parent, name)
        return next((row for row in rows if row.item != item), None)

    def in_tree(self, name: str, row: DiskRow | None = None) -> str:
        """What a name that was found on the disk is in the tree.

        Args:
            name: As a listing has it.
            row: That of the item, if it is a known one.
        """
        if row is not None and row.name == name:
            return row.shown_name
        if self.personality.stores_decomposed:
            composed = unicodedata.normalize("NFC", name)
            if self.personality.stored(composed) == name:
                return composed  # decomposed by the disk, not by a person
        return name

    def behind(self, parent: ItemId, name: str) -> ViewRow | None:
        """The item that `name` seems to be the alias of, in the shown directory `parent`: an index
        that was lost knew it.
        """
        if self.plain or not _ALIAS.search(name):
            return None
        for shown in self._tree.children(parent):
            if self._disk.get(shown.item) is None and name == self._first_alias(shown.name):
                return shown
        return None

    def _first_alias(self, name: str) -> str | None:
        try:
            return alias(name, lambda _: False, self.personality)
        except ValueError:
            return None
