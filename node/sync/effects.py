"""Which tree entries of the log have an effect, and what follows when that changes.

Every accepted entry lies in the log, so that all logs stay equal. An entry has no effect while its
author was not entitled to write it (`Roster.counts`), while its epoch's key has not come, and when
its author sealed what nobody may write. The tree shows the entries that have one, and no others:

    slots == the newest counting write of each (item, device)

The roster changes rarely and the keys with it; `settle_effects` then takes back what counts no
more, and takes up what counts now. All of it is one transaction, and what the applier then replaces
on the disk goes to history, as ever.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from crdt.entry import Entry, TreeBody, open_body
from crdt.errors import IntegrityError, PeerError
from crdt.ids import DeviceId, ItemId
from crdt.slot import Slot
from node.index.log import Why
from node.sync.folder import Folder
from node.sync.planner import UNSURE

logger = logging.getLogger("shoal.effects")

Write = tuple[ItemId, DeviceId, Slot]


def read_entry(folder: Folder, entry: Entry) -> TreeBody | Why:
    """What a tree entry says, or why it says nothing; never the fault of whoever brought it."""
    header = entry.header
    if not folder.roster.counts(header.device, header.seq):
        return Why.NOT_ENTITLED
    key = folder.keys.epochs.get(header.epoch)
    if key is None:
        return Why.NO_KEY
    try:
        return open_body(entry, key)
    except (PeerError, IntegrityError) as error:
        logger.warning("%s; it has no effect", error)
        return Why.MALFORMED


def written_ms(folder: Folder, body: TreeBody | Why) -> int:
    """When an entry was written, as its author says; but nothing was written in the future."""
    now_ms = max(0, folder.clock.wall_ns() // 1_000_000)
    if isinstance(body, Why) or body.time_ms is None:
        return now_ms
    return min(now_ms, body.time_ms)


def settle_effects(folder: Folder) -> list[str]:
    """Make the tree agree with the roster and the keys as they are now.

    Returns: what people should know.
    """
    notes: list[str] = []
    if folder.identity.device in folder.roster.removed:
        return notes  # what lies here stays as it is
    with folder.transaction():
        for device in (*folder.roster.removed, *folder.roster.lowered):
            notes += _take_back(folder, device)
        _take_up(folder)
    return notes


def _take_back(folder: Folder, device: DeviceId) -> list[str]:
    late: dict[int, Entry] = {}
    for after, through in folder.roster.uncounted(device):
        for seq, data in folder.log.effective(device, after, through):
            late[seq] = Entry.from_bytes(data)
    if not late:
        return []
    items = {item for entry in late.values() for item in _items(folder, entry)}
    for seq in late:
        folder.log.set_aside(device, seq, Why.NOT_ENTITLED)
    former = _former(folder, device, items)
    changed, taken = folder.tree.take_back((item, device, former.get(item)) for item in items)
    if device == folder.identity.device:
        _keep_local(folder, [item for item, _, _ in taken])
    folder.look_at(changed)
    if not taken:
        return []
    who = folder.name_of(device)
    return [
        f"{who} wrote to {len(taken)} items while it was being kept from that; they are as they "
        "were before, and what it wrote is in history"
    ]


def _items(folder: Folder, entry: Entry) -> list[ItemId]:
    key = folder.keys.epoch(entry.header.epoch)
    return [item for item, _ in open_body(entry, key).writes]


def _former(folder: Folder, device: DeviceId, items: set[ItemId]) -> dict[ItemId, Slot]:
    """The newest counting write of a device to each of `items`."""
    found: dict[ItemId, Slot] = {}
    for _, data in folder.log.effective(device, 0, None):
        if len(found) == len(items):
            break
        entry = Entry.from_bytes(data)
        for item, slot in open_body(entry, folder.keys.epoch(entry.header.epoch)).writes:
            if item in items:
                found.setdefault(item, slot)
    return found


def _keep_local(folder: Folder, items: list[ItemId]) -> None:
    """We may only read now, and had not heard: what we wrote becomes a local change.

    The disk rows say from now on that the disk should be as the view is, so the next scan finds
    that it is not, and keeps what it finds.
    """
    for item in items:
        row, shown = folder.disk.get(item), folder.tree.row(item)
        if row is None:
            continue
        if shown is None:
            folder.disk.drop(item)
            folder.locations.drop(item)
        else:
            content = shown.content
            folder.disk.put(
                replace(
                    row,
                    version=content.version,
                    digest=content.digest,
                    revision=shown.revision,
                    ctime_ns=UNSURE,
                )
            )


def _take_up(folder: Folder) -> None:
    writes: list[Write] = []
    for device, seq, why in folder.log.without_effect():
        if why is Why.MALFORMED or not folder.roster.counts(device, seq):
            continue
        entry = Entry.from_bytes(folder.log.entry(device, seq))
        body = read_entry(folder, entry)
        if isinstance(body, Why):
            if body is not why:
                folder.log.set_aside(device, seq, body)
            continue
        folder.log.take_up(device, seq, written_ms(folder, body))
        writes += [(item, device, slot) for item, slot in body.writes]
    if writes:
        folder.look_at(folder.tree.apply(writes))
        folder.advanced.ring()
