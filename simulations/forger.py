"""Entries that nobody may take: forged, after a gap, by strangers, readers and removed devices.

They are made from what a device holds and shown to its rules of acceptance. Nothing is stored, so a
world goes on as if nobody had tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from crdt import acceptance
from crdt.acceptance import Accept
from crdt.entry import Entry, LogPosition, build_tree
from crdt.ids import ROOT, ItemId
from crdt.slot import Placement, Slot
from node.sync.folder import Folder
from transport.identity import Identity

_ITEM: Final = ItemId(bytes(15) + b"\1")


@dataclass(frozen=True, slots=True)
class Outsiders:
    """Who writes what does not count; none of them runs."""

    stranger: Identity
    reader: Identity
    removed: Identity


def taken(folder: Folder, member: Identity, outsiders: Outsiders) -> Iterator[str]:
    """What `folder` would take and must not; `member` is another device that may write."""
    for what, entry in forgeries(folder, member, outsiders):
        verdict = acceptance.judge(
            entry,
            positions=folder.log.positions,
            roster=folder.roster,
            own=folder.identity.device,
            known_hash=folder.log.hash_at,
        )
        if isinstance(verdict, Accept):
            yield what


def forgeries(
    folder: Folder, member: Identity, outsiders: Outsiders
) -> Iterator[tuple[str, Entry]]:
    """Entries with a word of what is wrong with each."""
    for what, author in (
        ("an entry of a stranger", outsiders.stranger),
        ("an entry of a reader", outsiders.reader),
        ("an entry of a removed device that knew it", outsiders.removed),
    ):
        yield what, _entry(folder, author, folder.log.position(author.device))
    last = folder.log.position(member.device)
    sound = _entry(folder, member, last)
    yield "an entry that its author did not sign", replace(sound, signature=bytes(64))
    later = LogPosition(last.seq + 1, sound.hash, sound.header.lamport)
    yield "an entry after a gap", _entry(folder, member, later)
    if last.seq:
        other = replace(last, head=bytes(len(last.head) - 1) + b"\1")
        yield "an entry of another past", _entry(folder, member, other)


def _entry(folder: Folder, author: Identity, after: LogPosition) -> Entry:
    keys = folder.keys
    assert keys.current is not None, "all members have keys here"
    return build_tree(
        author.seed,
        key=keys.epoch(keys.current),
        after=after,
        deps=folder.log.have,
        lamport=max(folder.log.lamport, after.lamport) + 1,
        writes=[(_ITEM, Slot(after.seq + 1, (Placement(after.lamport + 1, ROOT, "forged"),)))],
        nonce=bytes(24),
        time_ms=0,
    )
