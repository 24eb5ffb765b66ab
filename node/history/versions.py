"""What there was: the versions of a path, a directory as of a time, what is deleted.

Read from the index alone, which remembers every slot that was replaced; whether a version's bytes
are still to be had is `node.history.availability`'s question. Times are the authors' clocks; within
one path the order of versions is that of logical time, so a wrong clock reorders nothing.

Synchronous, on the event loop. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from crdt.heads import heads, placements, self_alive
from crdt.ids import RECOVERED, ROOT, DeviceId, ItemId
from crdt.slot import Content, Kind, Slot
from crdt.tree import View, view
from node.index.disk_rows import DEPTH_MAX
from node.index.log import Stamp
from node.sync.folder import Folder

ITEMS_MAX: Final = 1_000_000  # of a directory as of a time; bounds what one question takes

_ELSEWHERE: Final = ItemId(b"some other place")  # no item: what is put there goes to Recovered

Origin = tuple[DeviceId, int]
State = dict[DeviceId, Slot]
"""An item's slots as they were at a time."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an item. `id` is what people type; `deleted` marks a deletion, whose content
    is what was deleted; `current` what the tree shows now.
    """

    id: str
    item: ItemId
    stamp: Stamp
    device: DeviceId
    content: Content
    deleted: bool = False
    current: bool = False


@dataclass(frozen=True, slots=True)
class Deleted:
    """Something deleted, and where it lay."""

    path: str
    version: Version


def version_id(origin: Origin) -> str:
    """What people type: the device's first letters and the number of its entry."""
    return f"{origin[0].short}-{origin[1]}"


class Versions:
    """Answers for one question; remembers what it read while it answers."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._tree = folder.tree
        self._stamps: dict[Origin, Stamp] = {}
        self._ever: dict[ItemId, list[tuple[DeviceId, Slot]]] = {}

    # --- a path ---------------------------------------------------------------------------------

    def of_path(self, path: str) -> list[Version]:
        """Every version that lay at `path`, the newest first; and what became of it elsewhere is
        left out.
        """
        parents, name = self._parents(path)
        found: list[Version] = []
        for item in self._items_at(parents, name):
            row = self._tree.row(item)
            here = row is not None and row.name == name and row.parent in parents
            last = self._tree.last_place(item)
            gone = row is None and last is not None and last == (last[0], name)
            whole = here or (gone and last is not None and last[0] in parents)
            found += [
                version
                for version in self.of_item(item)
                if whole or self._lay_at(item, version.stamp.time_ms, parents, name)
            ]
        return sorted(found, key=lambda one: (one.stamp, one.deleted, one.id), reverse=True)

    def of_item(self, item: ItemId) -> list[Version]:
        """All versions of an item, in no order."""
        row = self._tree.row(item)
        if row is not None and row.copy_of is not None:
            return [replace(self._version(item, row.content), current=True)]
        newest: dict[Origin, Content] = {}
        for _, slot in self._slots(item):
            content = slot.content
            if content is not None and content.kind is not Kind.DIRECTORY:
                known = newest.get(content.origin)
                if known is None or known.lamport < content.lamport:
                    newest[content.origin] = content
        shown = None if row is None else row.content.origin
        versions = [
            replace(self._version(item, content), current=origin == shown)
            for origin, content in newest.items()
        ]
        return versions + list(self._deletions(item))

    def _deletions(self, item: ItemId) -> Iterator[Version]:
        for device, slot in self._slots(item):
            if slot.deleted is None or slot.deleted[device] != slot.counter:
                continue  # not the write that deleted it
            stamp = self._stamp((device, slot.counter))
            state = self.state(item, stamp.time_ms)
            before = self._content(state)
            if before is not None and not self_alive(state):
                id_ = version_id((device, slot.counter))
                yield Version(id_, item, stamp, device, before, deleted=True)

    def _version(self, item: ItemId, content: Content) -> Version:
        device, counter = content.origin
        stamp = self._stamp(content.origin)
        if not stamp.lamport:
            stamp = Stamp(content.lamport, max(0, content.mtime_ns // 1_000_000))
        return Version(version_id((device, counter)), item, stamp, device, content)

    # --- as of a time ---------------------------------------------------------------------------

    def at_path(self, path: str, time_ms: int) -> Version | None:
        """What file or symlink lay at `path` then."""
        parents, name = self._parents(path)
        found = []
        for item in self._items_at(parents, name):
            state = self.state(item, time_ms)
            content = self._content(state)
            if (
                content is not None
                and content.kind is not Kind.DIRECTORY
                and self_alive(state)
                and self._place(state, parents, name)
            ):
                found.append(self._version(item, content))
        return max(found, key=lambda one: one.stamp, default=None)

    def directories_at(self, path: str, time_ms: int | None = None) -> set[ItemId]:
        """Every directory that lies or ever lay at `path`; with a time, those that lay there."""
        if not path:
            return {ROOT}
        parents, name = self._parents(path)
        return {
            item
            for item in self._items_at(parents, name)
            if self._is_directory(item)
            and (time_ms is None or self._lay_at(item, time_ms, parents, name))
        }

    def below(self, tops: set[ItemId], time_ms: int) -> dict[str, Version | None]:
        """What lay in these directories, seen as one, at a time: path from there → version, None
        for a directory. Parents come before their children.
        """
        slots: dict[tuple[ItemId, DeviceId], Slot] = {}
        seen, pending = set(tops), list(tops)
        while pending and len(seen) < ITEMS_MAX:
            for item in self._tree.ever_in(pending.pop()) - seen:
                seen.add(item)
                state = self.state(item, time_ms)
                slots |= {(item, device): _hung_up(slot, tops) for device, slot in state.items()}
                if any(s.content and s.content.kind is Kind.DIRECTORY for s in state.values()):
                    pending.append(item)
        made = view(slots)
        found: dict[str, Version | None] = {}
        self._collect(made, ROOT, "", found, skip=None if tops == {ROOT} else RECOVERED)
        return found

    def _collect(
        self,
        made: View,
        top: ItemId,
        path: str,
        found: dict[str, Version | None],
        *,
        skip: ItemId | None,
    ) -> None:
        stack = [(top, path)]
        while stack:
            at, path = stack.pop()
            for row in made.children(at):
                where = f"{path}/{row.name}" if path else row.name
                if row.item == skip:
                    continue
                if row.content.kind is Kind.DIRECTORY:
                    found[where] = None
                    stack.append((row.item, where))
                else:
                    found[where] = self._version(row.item, row.content)

    def state(self, item: ItemId, time_ms: int) -> State:
        """The item's slots at a time: of each device the newest that was written by then."""
        state: State = {}
        for device, slot in self._slots(item):
            known = state.get(device)
            if known is not None and known.counter > slot.counter:
                continue
            if self._stamp((device, slot.counter)).time_ms <= time_ms:
                state[device] = slot
        return state

    # --- what is deleted ------------------------------------------------------------------------

    def deleted_below(self, directory: str) -> list[Deleted]:
        """What was deleted in a directory and below it, but for what something else replaced; the
        newest first.
        """
        found = []
        for item, parent, name in self._tree.deleted():
            path = self._last_path(parent, name)
            if path is None or not (not directory or path.startswith(f"{directory}/")):
                continue
            if self._tree.resolve(path) is not None:
                continue
            marks = list(self._deletions(item))
            if marks:
                found.append(Deleted(path, max(marks, key=lambda one: one.stamp)))
        return sorted(found, key=lambda one: (one.version.stamp, one.path), reverse=True)

    def _last_path(self, parent: ItemId, name: str) -> str | None:
        names = [name]
        while parent != ROOT:
            place = self._tree.last_place(parent)
            if place is None or len(names) > DEPTH_MAX:
                return None
            parent, name = place
            names.append(name)
        return "/".join(reversed(names))

    # --- pieces ---------------------------------------------------------------------------------

    def _parents(self, path: str) -> tuple[set[ItemId], str]:
        """The directories that lie or lay where `path` is in, and its last name."""
        *directories, name = path.split("/")
        parents = {ROOT}
        for one in directories:
            items = self._items_at(parents, one)
            parents = {item for item in items if self._is_directory(item)}
        return parents, name

    def _items_at(self, parents: Iterable[ItemId], name: str) -> set[ItemId]:
        found: set[ItemId] = set()
        for parent in parents:
            found |= self._tree.ever_at(parent, name)
        return found

    def _is_directory(self, item: ItemId) -> bool:
        return item == RECOVERED or any(
            slot.content is not None and slot.content.kind is Kind.DIRECTORY
            for _, slot in self._slots(item)
        )

    def _lay_at(self, item: ItemId, time_ms: int, parents: set[ItemId], name: str) -> bool:
        return self._place(self.state(item, time_ms), parents, name)

    @staticmethod
    def _place(state: Mapping[DeviceId, Slot], parents: set[ItemId], name: str) -> bool:
        placed = placements(state)
        return bool(placed) and placed[0].parent in parents and placed[0].name == name

    @staticmethod
    def _content(state: Mapping[DeviceId, Slot]) -> Content | None:
        return next(iter(heads(state)), None)

    def _slots(self, item: ItemId) -> list[tuple[DeviceId, Slot]]:
        known = self._ever.get(item)
        if known is None:
            known = self._ever[item] = self._tree.ever_of(item)
        return known

    def _stamp(self, origin: Origin) -> Stamp:
        known = self._stamps.get(origin)
        if known is None:
            known = self._stamps[origin] = self._folder.log.stamp(*origin)
        return known


def _hung_up(slot: Slot, tops: set[ItemId]) -> Slot:
    """The slot with the directories in question as the root, and the root as somewhere else."""
    if ROOT in tops:
        return slot
    parents = dict.fromkeys(tops, ROOT) | {ROOT: _ELSEWHERE}
    places = (replace(p, parent=parents.get(p.parent, p.parent)) for p in slot.placements)
    return replace(slot, placements=tuple(places))
