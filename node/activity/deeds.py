"""Who did what: the signed entries of the log as people would tell them.

A *deed* is one write of a tree entry (a file created, edited, moved or deleted), or one operation
of a roster entry (somebody invited, let in, removed, given another role). Entries without effect
are left out. Times are the authors' clocks; of roster entries, which say none, when they came here.
Synchronous, on the event loop; an entry is opened anew each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from crdt.entry import Entry, EntryKind, Header
from crdt.ids import ROOT, DeviceId, ItemId
from crdt.roster_ops import Add, Genesis, Invite, Join, Op, Remove, Revoke, SetRole, parse_ops
from crdt.slot import Slot
from node.index.disk_rows import DEPTH_MAX
from node.index.log import Why
from node.sync.effects import read_entry
from node.sync.folder import Folder

CREATED: Final = "created"
EDITED: Final = "edited"
MOVED: Final = "moved"
DELETED: Final = "deleted"
CONFLICT: Final = "conflict"


@dataclass(frozen=True, slots=True)
class Deed:
    """Who did what, and when (milliseconds since 1970).

    `path` is relative to the folder, empty for what is not about a path; directories on the way
    are called what they are called now. `was` is where what was moved lay before. `about` is the
    device, or for an invitation the role, that a deed of the roster is about.
    """

    time_ms: int
    device: DeviceId
    action: str
    path: str = ""
    was: str | None = None
    about: str | None = None


def deeds_of(folder: Folder, data: bytes, time_ms: int) -> list[Deed]:
    """What one stored entry did; nothing if it has no effect."""
    entry = Entry.from_bytes(data)
    if entry.header.kind is EntryKind.ROSTER:
        return list(_roster_deeds(folder, entry, time_ms))
    body = read_entry(folder, entry)
    if isinstance(body, Why):
        return []
    told = (_tree_deed(folder, entry.header, time_ms, *write) for write in body.writes)
    return [deed for deed in told if deed is not None]


# --- the tree -----------------------------------------------------------------------------------


def _tree_deed(
    folder: Folder, header: Header, time_ms: int, item: ItemId, slot: Slot
) -> Deed | None:
    device, seq = header.device, header.seq
    placed = bool(slot.placements) and slot.placements[0].lamport == header.lamport
    content = slot.content
    written = content is not None and content.version[device] == seq
    first = len(slot.placements) == 1 and placed
    deleted = slot.deleted is not None and slot.deleted[device] == seq
    now, before = _places(folder, item, header)
    if deleted:
        action = DELETED
    elif placed and (before is None or (first and content and content.origin == (device, seq))):
        action = CREATED
    elif placed and now != before:
        action = MOVED
    elif written:
        action = EDITED
    else:
        return None  # it withdrew or resolved something; nothing that a person sees as a deed
    path = "?" if now is None else now
    was = before if action == MOVED else None
    return Deed(time_ms, device, action, path, was)


def _places(folder: Folder, item: ItemId, header: Header) -> tuple[str | None, str | None]:
    """Where an item lay after an entry and before it, as far as is still known."""
    placements = {
        (placement.lamport, device): placement
        for device, slot in folder.tree.ever_of(item)
        for placement in slot.placements
        if placement.lamport <= header.lamport
    }
    order = sorted(placements)
    own = (header.lamport, header.device)
    after = [placements[at] for at in order]
    before = [placements[at] for at in order if at != own]
    last = folder.tree.last_place(item)
    now = (after[-1].parent, after[-1].name) if after else last
    then = (before[-1].parent, before[-1].name) if before else None
    return _path(folder, now), _path(folder, then)


def _path(folder: Folder, place: tuple[ItemId, str] | None) -> str | None:
    names: list[str] = []
    while place is not None and len(names) <= DEPTH_MAX:
        parent, name = place
        names.append(name)
        if parent == ROOT:
            break
        place = folder.tree.last_place(parent)
    return "/".join(reversed(names)) if names else None


# --- the roster ---------------------------------------------------------------------------------


def _roster_deeds(folder: Folder, entry: Entry, time_ms: int) -> Iterator[Deed]:
    device, seq = entry.header.device, entry.header.seq
    void = {one.op for one in folder.roster.void if (one.device, one.seq) == (device, seq)}
    for op in parse_ops(entry.body):
        if op not in void:
            yield from _roster_deed(folder, op, device, time_ms)


def _roster_deed(folder: Folder, op: Op, device: DeviceId, time_ms: int) -> Iterator[Deed]:
    match op:
        case Genesis():
            yield Deed(time_ms, device, "founded")
        case Add(device=other):
            yield Deed(time_ms, device, "added", about=folder.name_of(other))
        case Remove(device=other):
            yield Deed(time_ms, device, "removed", about=folder.name_of(other))
        case Invite(role=role):
            yield Deed(time_ms, device, "invited", about=role.name.lower())
        case Revoke():
            yield Deed(time_ms, device, "revoked")
        case Join(device=other):
            yield Deed(time_ms, other, "joined", about=folder.name_of(device))
        case SetRole(device=other, role=role):
            about = f"{folder.name_of(other)} {role.name.lower()}"
            yield Deed(time_ms, device, "role", about=about)
        case _:
            pass  # keys are no news
