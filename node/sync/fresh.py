"""Files that were edited here lately. In memory only; bounded.

A program may write through a memory mapping without a change of any stamp, as long as the page was
dirty when the scan read it. Kernels write dirty pages back after half a minute; from then on such a
write shows in mtime. So an edited file is *fresh* until it was read once more `FRESH_S` later.
"""

from __future__ import annotations

from typing import Final

from crdt.ids import ItemId

FRESH_S: Final = 45.0  # Linux writes back what was dirty for 30 s, looking every 5 s
FRESH_MAX: Final = 10_000  # items; who edits more at once uses no mappings


class Fresh:
    """The fresh files of one folder."""

    def __init__(self) -> None:
        self._since_s: dict[ItemId, float] = {}  # oldest first

    def add(self, item: ItemId, now_s: float) -> None:
        """The scan has just read an edit of `item`."""
        self._since_s.pop(item, None)
        self._since_s[item] = now_s
        if len(self._since_s) > FRESH_MAX:
            del self._since_s[next(iter(self._since_s))]

    def __contains__(self, item: ItemId) -> bool:
        return item in self._since_s

    def settled(self, now_s: float) -> list[ItemId]:
        """What has to be read once more."""
        return [item for item, since in self._since_s.items() if now_s - since >= FRESH_S]

    def discard(self, item: ItemId) -> None:
        """It was read once more, or is gone."""
        self._since_s.pop(item, None)
