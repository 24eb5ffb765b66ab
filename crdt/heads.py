"""What one item's slots say about it: heads, liveness, placements. Pure functions of its slots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import blake3

from crdt.codec import pack
from crdt.ids import ITEM_ID_SIZE, DeviceId, ItemId
from crdt.slot import Content, Kind, Slot
from crdt.version_vector import VersionVector

Slots = Mapping[DeviceId, Slot]
_DERIVED: Final = "shoal v1 derived item"


@dataclass(frozen=True, slots=True, order=True)
class Placed:
    """A placement with the device that made it; greater is newer."""

    lamport: int
    device: DeviceId
    parent: ItemId
    name: str


def derived_id(item: ItemId, version: VersionVector) -> ItemId:
    """The item that shows the losing head `version` of `item`; the same on every device."""
    digest = blake3.blake3(pack([item, version.to_wire()]), derive_key_context=_DERIVED).digest()
    return ItemId(digest[:ITEM_ID_SIZE])


def placements(slots: Slots) -> list[Placed]:
    """All placements of an item, newest first."""
    placed = [
        Placed(p.lamport, device, p.parent, p.name)
        for device, slot in slots.items()
        for p in slot.placements
    ]
    return sorted(placed, reverse=True)


def maximal(slots: Slots) -> list[Content]:
    """The contents that no other one has seen; equal versions count once. Winner order.

    A content that was deleted by somebody who had seen it is none of them while there is another
    one: an edit that the deleter had not seen brings back the item, not what was deleted, whose
    bytes may be gone for good.
    """
    deletions = [slot.deleted for slot in slots.values() if slot.deleted is not None]
    contents = _distinct(
        slot.content
        for device, slot in slots.items()
        if not any(seen.covers(device, slot.counter) for seen in deletions)
    ) or _distinct(slot.content for slot in slots.values())
    if len(contents) > 1:
        contents = [
            c
            for c in contents
            if not any(o is not c and o.version.dominates(c.version) for o in contents)
        ]
        contents.sort(key=_rank, reverse=True)
    return contents


def _distinct(contents: Iterable[Content | None]) -> list[Content]:
    """One content a version."""
    distinct: dict[VersionVector, Content] = {}
    for content in contents:
        if content is not None:
            known = distinct.get(content.version)
            if known is None or _rank(content) > _rank(known):
                distinct[content.version] = content
    return list(distinct.values())


def heads(slots: Slots) -> list[Content]:
    """The contents to show: the winner first, then the losers, each a conflict copy.

    Of the maximal ones, those are left out that another one makes needless: equal bytes, and a
    change of metadata alone beside an edit of the same bytes.
    """
    contents = maximal(slots)
    if len(contents) < 2:
        return contents
    if contents[0].kind is Kind.DIRECTORY:
        return contents[:1]
    edited = [c for c in contents if not any(_yields(c, o) for o in contents if o is not c)]
    kept: dict[bytes, Content] = {}
    for content in edited or contents:
        kept.setdefault(content.digest, content)
    return list(kept.values())


def _yields(touch: Content, edit: Content) -> bool:
    """True when `edit` has seen the bytes of `touch`, which has not seen those of `edit`."""
    return edit.version.covers(*touch.origin) and not touch.version.covers(*edit.origin)


def _rank(content: Content) -> tuple[object, ...]:
    """Lamport and device decide among honest contents; the rest orders any two that differ."""
    return (
        content.lamport,
        content.device,
        content.digest,
        content.mtime_ns,
        content.executable,
        content.origin,
        sorted(content.version.items()),
    )


def self_alive(slots: Slots) -> bool:
    """True while some slot says what nobody who deleted the item had seen.

    Every slot must have been seen by *some* deleter, not all of them by one: else two devices that
    delete an item at once would bring it back, each by the write that deletes it.
    """
    if not any(slot.content is not None for slot in slots.values()):
        return False
    deletions = [slot.deleted for slot in slots.values() if slot.deleted is not None]
    return not deletions or not all(
        any(seen.covers(device, slot.counter) for seen in deletions)
        for device, slot in slots.items()
    )
