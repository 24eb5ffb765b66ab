"""Takes other devices' entries in: parse, judge, store, apply, in one transaction a batch.

Only after the transaction is an entry acknowledged. What the sender must not have sent raises
`PeerError` and the batch up to there stands. What came too early waits in a bounded room; what
finds no room is dropped and asked for again, since the log position that we announce does not
cover it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from crdt import acceptance
from crdt.entry import Entry, EntryKind
from crdt.errors import PeerError
from crdt.ids import DeviceId, ItemId
from crdt.slot import Slot
from node.index.log import Why
from node.sync.effects import read_entry, settle_effects, written_ms
from node.sync.folder import Folder

logger = logging.getLogger("shoal.intake")


RESTORED: Final = (
    "this device had written more than it knew: its home was restored from an old backup, or "
    "copied. What it lacked came back from another device; nothing is lost. If a copy of this "
    "device runs elsewhere, stop one of the two."
)


def fork_words(folder: Folder, device: DeviceId) -> str:
    """What to tell people when a device has signed two entries for one place in its log."""
    if device == folder.identity.device:
        return (
            "another copy of this device writes under its key (a fork): its home was copied, or "
            "restored from an old backup. No file is lost, but what is changed here may reach "
            "nobody any more. Stop one of the two. Here, join again with another home (--home) and "
            "a copy of the files, and let an owner remove this device."
        )
    return (
        f"{folder.name_of(device)} ({device.short}) has signed two different entries for one place "
        "in its log (a fork): two copies of that device run, or it was restored from an old "
        "backup. No file is lost, but what one of them changes stays on its disk. There, join "
        "again with another home (--home) and a copy of the files; then "
        f"`shoal remove {device.short}`."
    )


@dataclass(slots=True)
class Received:
    """What became of a batch."""

    accepted: int = 0
    roster_changed: bool = False
    forks: list[acceptance.Fork] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Intake:
    """Judges and stores entries for one folder; holds its waiting room."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._room = acceptance.WaitingRoom()

    def receive(self, batch: Sequence[bytes]) -> Received:
        """Take in entries as they came over the wire.

        Raises:
            PeerError: the sender broke the protocol; what came before that entry is stored.
        """
        folder, result = self._folder, Received()
        parsed: list[Entry] = []
        fault: PeerError | None = None
        for data in batch:
            try:
                parsed.append(Entry.from_bytes(data))
            except ValueError as error:
                fault = PeerError(f"sent an entry that is malformed: {error}")
                break
        writes: list[tuple[ItemId, DeviceId, Slot]] = []
        with folder.transaction():
            for entry in parsed:
                try:
                    self._take(entry, result, writes)
                except PeerError as error:
                    fault = error
                    break
            self._apply(writes)
            if result.roster_changed:
                result.warnings += settle_effects(folder)
        if result.accepted:
            folder.advanced.ring()
        if fault is not None:
            raise fault
        return result

    def _take(
        self, entry: Entry, result: Received, writes: list[tuple[ItemId, DeviceId, Slot]]
    ) -> None:
        folder = self._folder
        queue = [entry]
        while queue:
            entry = queue.pop()
            verdict = acceptance.judge(
                entry,
                positions=folder.log.positions,
                roster=folder.roster,
                own=folder.identity.device,
                known_hash=folder.log.hash_at,
            )
            match verdict:
                case acceptance.Accept():
                    self._store(entry, result, writes)
                    header = entry.header
                    queue += self._room.accepted(header.device, header.seq)
                case acceptance.Own():
                    if self._take_back(entry, result, writes):
                        queue += self._room.accepted(entry.header.device, entry.header.seq)
                case acceptance.Wait(blocker=blocker):
                    named = folder.roster.named_role(entry.header.device) is not None
                    self._room.offer(entry, blocker, named=named)
                case acceptance.Fork():
                    result.forks.append(verdict)
                case acceptance.Aside(reason=reason):
                    result.warnings.append(reason)
                case acceptance.Refuse(error=error):
                    raise error
                case acceptance.Duplicate():
                    pass

    def _take_back(
        self, entry: Entry, result: Received, writes: list[tuple[ItemId, DeviceId, Slot]]
    ) -> bool:
        """An entry of ours that we lack: this index is older than what we once sent.

        As long as it continues our log, taking it back loses nothing; if we wrote another one
        with its number meanwhile, `judge` calls it a fork.
        """
        position = self._folder.log.position(entry.header.device)
        if entry.header.seq != position.seq + 1 or entry.header.prev_hash != position.head:
            result.warnings.append("entries of our own came back out of order; they come again")
            return False
        result.warnings.append(RESTORED)
        self._store(entry, result, writes)
        return True

    def _store(
        self,
        entry: Entry,
        result: Received,
        writes: list[tuple[ItemId, DeviceId, Slot]],
    ) -> None:
        folder, device = self._folder, entry.header.device
        result.accepted += 1
        if entry.header.kind is EntryKind.ROSTER:
            folder.log.append(entry, time_ms=max(0, folder.clock.wall_ns() // 1_000_000))
            result.roster_changed = True
            folder.reload_roster()
            return
        body = read_entry(folder, entry)
        folder.log.append(entry, time_ms=written_ms(folder, body))
        if isinstance(body, Why):
            folder.log.set_aside(device, entry.header.seq, body)
            if body is Why.MALFORMED:
                who = folder.name_of(device)
                result.warnings.append(f"{who} wrote an entry that is malformed; it has no effect")
        else:
            writes.extend((item, device, slot) for item, slot in body.writes)

    def _apply(self, writes: list[tuple[ItemId, DeviceId, Slot]]) -> None:
        if writes:
            self._folder.look_at(self._folder.tree.apply(writes))
