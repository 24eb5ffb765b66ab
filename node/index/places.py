"""Where the items of a batch lie, and which of them live: rules 1 and 2 of `crdt.tree`.

Only a directory can be part of a cycle. So nothing is walked for a file; and while no item has
fallen back to an older placement, only the directories that a batch writes are walked up from.
Once some have, they all start over from their newest placement as soon as a directory that was
here before is written: breaking cycles gives the same result in whatever order it is done, and a
cycle of the newest placements passes through one that was written or one that had fallen back.

Liveness travels upwards by counting: a directory lives while it counts a living child.
"""

from __future__ import annotations

from collections.abc import Iterable

from crdt.heads import Placed, placements
from crdt.ids import RECOVERED, ROOT, DeviceId, ItemId
from node.index.records import (
    AIMING_AT,
    CHILDREN_APART,
    CHILDREN_TOGETHER,
    FALLEN,
    Record,
    Records,
)


class Places:
    """Finds effective parents for the records of one batch."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._placed: dict[ItemId, list[Placed]] = {}
        self._affected: dict[Record, None] = {}  # in order, so that runs are alike

    def settle(self, written: Iterable[Record]) -> list[Record]:
        """Place what was written (already looked at), and whatever that moves, kills or revives.

        Returns: all records whose group of names, liveness or content may have changed.
        """
        self._affected = dict.fromkeys(written)
        seeds: list[Record] = []
        disturbed = False
        for record in list(self._affected):
            if record.item == RECOVERED:
                continue
            before = record.stored is not None and record.stored.is_directory
            if record.is_directory != before:
                turned = self._turn(record)
                disturbed = disturbed or bool(turned)
                seeds += turned
            if record.is_directory:
                seeds.append(record)
            was_here = record.stored is not None and record.stored.copy_of is None
            disturbed = disturbed or before or (was_here and record.is_directory)
        if disturbed:
            seeds += self._records.ask(FALLEN)
        for record in (*self._affected, *seeds):
            if record.item != RECOVERED and (record.losers is not None or record.placed):
                self._choose(record, 0)
        self._affected.update(dict.fromkeys(seeds))
        self._break_cycles(seeds)
        self._count()
        return list(self._affected)

    def _turn(self, record: Record) -> list[Record]:
        """An item became a directory, or ceases to be one: children come, or go to `Recovered/`."""
        records, item = self._records, record.item
        if record.is_directory:
            children = records.ask(AIMING_AT, item)
            for child in children:
                child.parent, child.aim = item, None
        else:
            children = records.ask(CHILDREN_TOGETHER, item, item)
            children += records.ask(CHILDREN_APART, item)
            for child in children:
                child.parent, child.aim = RECOVERED, item
        return children

    def _choose(self, record: Record, index: int) -> None:
        """Put the item where its placement number `index` says."""
        candidates = self._candidates(record)
        chosen = candidates[index] if index < len(candidates) else None
        record.placed = index
        record.name = (chosen or candidates[0]).name if candidates else record.item.hex()
        aim = None if chosen is None else chosen.parent
        if aim is not None and self._holds_items(aim):
            record.parent, record.aim = aim, None
        else:
            record.parent, record.aim = RECOVERED, aim

    def _candidates(self, record: Record) -> list[Placed]:
        found = self._placed.get(record.item)
        if found is None:
            found = self._placed[record.item] = placements(self._records.slots(record))
        return found

    def _holds_items(self, item: ItemId) -> bool:
        if item in {ROOT, RECOVERED}:
            return True
        found = self._records.find(item)
        return found is not None and found.is_directory

    def _break_cycles(self, seeds: Iterable[Record]) -> None:
        pending = list(dict.fromkeys(seeds))
        done: set[ItemId] = {ROOT, RECOVERED}
        while pending:
            path: dict[ItemId, None] = {}
            at = pending[-1].item
            while at not in done and at not in path:
                path[at] = None
                at = self._records.get(at).parent or ROOT
            if at in done:
                done.update(path)
                pending.pop()
                continue
            ordered = list(path)
            cycle = ordered[ordered.index(at) :]
            newest = self._records.get(max(cycle, key=self._newness))
            self._affected[newest] = None
            self._choose(newest, newest.placed + 1)

    def _newness(self, item: ItemId) -> tuple[int, DeviceId, ItemId]:
        record = self._records.get(item)
        chosen = self._candidates(record)[record.placed]  # only a placement can close a cycle
        return (chosen.lamport, chosen.device, item)

    def _count(self) -> None:
        """Settle who lives. All moves are counted first, so that nothing lives on in a ring."""
        pending = list(self._affected)
        for record in self._affected:
            if record.alive and record.counted != record.parent:
                self._add(record.counted, -1, pending)
                self._add(record.parent, 1, pending)
                record.counted = record.parent
        while pending:
            record = pending.pop()
            alive = record.self_alive or record.live_children > 0
            if alive != record.alive:
                record.alive = alive
                record.counted = record.parent if alive else None
                self._add(record.parent, 1 if alive else -1, pending)
                self._affected[record] = None

    def _add(self, parent: ItemId | None, count: int, pending: list[Record]) -> None:
        if parent is not None and parent != ROOT:
            record = self._records.get(parent)
            record.live_children += count
            pending.append(record)
