"""Which texts came to lie on the disk, and lie nowhere else: `node.sync.base_texts` copies them.

In memory only, and bounded: what is forgotten here may not be merged one day, no more.
"""

from __future__ import annotations

from typing import Final

from crdt.ids import ItemId
from crdt.merge_text import TEXT_SIZE_MAX
from crdt.slot import INLINE_SIZE_MAX
from node.index.disk_rows import DiskRow
from node.sync.bell import Bell

UNKEPT_MAX: Final = 10_000  # files; of a larger burst the newest


class Unkept:
    """The files of one folder that may be texts to be copied, oldest first."""

    size_min: Final = INLINE_SIZE_MAX + 1  # bytes; smaller ones lie in the log
    size_max: Final = TEXT_SIZE_MAX

    def __init__(self) -> None:
        self._items: dict[ItemId, None] = {}
        self.added = Bell()

    def note(self, row: DiskRow) -> None:
        """What `row` describes lies on the disk now."""
        if self.size_min <= row.size <= self.size_max:
            self.add(row.item)

    def add(self, item: ItemId) -> None:
        """The file of `item` may be a text to be copied."""
        self._items[item] = None
        if len(self._items) > UNKEPT_MAX:
            self.pop()
        self.added.ring()

    def pop(self) -> ItemId:
        """Take the oldest."""
        item = next(iter(self._items))
        del self._items[item]
        return item

    def __bool__(self) -> bool:
        return bool(self._items)
