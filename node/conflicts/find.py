"""Which files are in conflict, and which files are their copies.

Three things look alike to people, and are one here:

- a losing head, shown as a virtual copy;
- a copy that became an item of its own, since somebody acted on it or on the winner, for as long as
  it bears its conflict name beside a living original;
- a file that lost its name to another one of the same name.

So a conflict is over when its copies are deleted, or renamed. Read from the index alone, on the
event loop; costs what there is in conflict, not what there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from crdt.heads import derived_id, heads
from crdt.ids import DeviceId, ItemId
from crdt.lineage import Lineage
from crdt.naming import original_name
from crdt.slot import Content
from crdt.tree import ViewRow
from node.sync.folder import Folder


@dataclass(frozen=True, slots=True)
class Conflict:
    """What keeps the name, its copies by name, and the last content that all were made from, where
    there is one that is still known.
    """

    path: str
    shown: ViewRow
    copies: tuple[ViewRow, ...]
    ancestor: Content | None

    @property
    def rows(self) -> tuple[ViewRow, ...]:
        """All of them, what keeps the name first."""
        return (self.shown, *self.copies)


class Conflicts:
    """Answers for one question."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._tree = folder.tree

    def all(self) -> list[Conflict]:
        """Every conflict, by path."""
        copies: dict[ItemId, dict[ItemId, ViewRow]] = {}
        of = {copy.item: item for item, copy in self._pairs()}
        for item, copy in self._pairs():
            copies.setdefault(_root(of, item), {})[copy.item] = copy
        found = [self._conflict(item, list(rows.values())) for item, rows in copies.items()]
        return sorted((one for one in found if one is not None), key=lambda one: one.path)

    def at(self, path: str) -> Conflict | None:
        """The conflict that what lies at `path` is part of."""
        row = self._tree.resolve(path)
        if row is None:
            return None
        items = {row.item}
        return next((one for one in self.all() if items & {shown.item for shown in one.rows}), None)

    def _pairs(self) -> Iterator[tuple[ItemId, ViewRow]]:
        """(what keeps the name, a copy)."""
        tree = self._tree
        for row in tree.conflicts():
            for member in tree.members(row.item):
                for head in heads(tree.slots(member))[1:]:
                    copy = tree.row(derived_id(member, head.version))
                    if copy is not None and copy.copy_of is not None:
                        yield row.item, copy
        for row in tree.robbed_of_their_name():
            place = tree.last_place(row.item)
            keeper = None if place is None else tree.child(row.parent, place[1])
            if keeper is not None and keeper.item != row.item:
                yield keeper.item, row
        for row in tree.named_as_copies():
            origin = self._origin(row)
            if origin is not None and origin.item != row.item:
                yield origin.item, row

    def _origin(self, row: ViewRow) -> ViewRow | None:
        """What a copy that is an item of its own was a copy of, if that is still there."""
        for item in self._origins(row):
            shown = self._tree.row(self._tree.representative(item))
            if shown is not None:
                return shown
        return None

    def _origins(self, row: ViewRow) -> Iterator[ItemId]:
        tree, name = self._tree, original_name(row.name)
        known = tree.derived_from(row.item)
        if known is not None:
            yield known
        place = tree.last_place(row.item)
        if name is None or place is None:
            return
        versions = {content.version for content in self._contents(row.item)}
        for parent in {place[0], row.parent}:
            for item in sorted(tree.ever_at(parent, name)):
                if any(derived_id(item, version) == row.item for version in versions):
                    yield item

    def _contents(self, item: ItemId) -> list[Content]:
        slots = self._tree.ever_of(item)
        return [slot.content for _, slot in slots if slot.content is not None]

    def _conflict(self, item: ItemId, copies: list[ViewRow]) -> Conflict | None:
        shown, path = self._tree.row(item), self._tree.path(item)
        if shown is None or path is None:
            return None
        copies.sort(key=lambda row: (row.name, row.item))
        return Conflict(path, shown, tuple(copies), self._ancestor(shown, copies))

    def _ancestor(self, shown: ViewRow, copies: list[ViewRow]) -> Content | None:
        """The newest common ancestor of what keeps the name and all that became copies of it."""
        contents = {content.version: content for content in self._contents(shown.item)}
        lineage = Lineage(contents.values())
        parted = {
            version
            for version in contents
            if any(derived_id(shown.item, version) == copy.item for copy in copies)
        }
        rivals = {
            version
            for version in contents
            for other in parted
            if not version.dominates(other) and not other.dominates(version)
        }
        newest = max(rivals, key=lambda one: contents[one].lamport, default=None)
        if not parted or newest is None:
            return None
        return lineage.ancestor([newest, *parted])


def stamp_ms(folder: Folder, content: Content) -> int:
    """When these bytes were written, by their author's clock; milliseconds since 1970 UTC."""
    stamp = folder.log.stamp(*content.origin)
    return stamp.time_ms if stamp.lamport else max(0, content.mtime_ns // 1_000_000)


def author(content: Content) -> DeviceId:
    """Whose bytes these are."""
    return content.origin[0]


def _root(of: dict[ItemId, ItemId], item: ItemId) -> ItemId:
    """What keeps the name in the end: a copy may be in conflict itself."""
    seen = {item}
    while item in of and of[item] not in seen:
        item = of[item]
        seen.add(item)
    return item
