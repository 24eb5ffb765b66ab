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

from crdt import acceptance
from crdt.entry import Entry, EntryKind, open_body
from crdt.errors import PeerError
from crdt.ids import DeviceId, ItemId
from crdt.slot import Slot
from node.sync.folder import Folder

logger = logging.getLogger("shoal.intake")


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
                case acceptance.Accept(counts=counts):
                    self._store(entry, counts, result, writes)
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
            result.warnings.append("an entry of our own came back out of order")
            return False
        result.warnings.append(f"took back our own entry {entry.header.seq}: an old index was used")
        self._store(entry, True, result, writes)
        return True

    def _store(
        self,
        entry: Entry,
        counts: bool,
        result: Received,
        writes: list[tuple[ItemId, DeviceId, Slot]],
    ) -> None:
        folder = self._folder
        opened: list[tuple[ItemId, Slot]] = []
        # A clock that is ahead of ours is wrong, or ours is: nothing was written in the future.
        time_ms = max(0, folder.clock.wall_ns() // 1_000_000)
        if entry.header.kind is EntryKind.TREE and counts:
            body = open_body(entry, folder.keys.epoch(entry.header.epoch))
            opened = body.writes
            time_ms = min(time_ms, time_ms if body.time_ms is None else body.time_ms)
        folder.log.append(entry, time_ms=time_ms)
        result.accepted += 1
        writes.extend((item, entry.header.device, slot) for item, slot in opened)
        if entry.header.kind is EntryKind.ROSTER:
            result.roster_changed = True
            folder.reload_roster()

    def _apply(self, writes: list[tuple[ItemId, DeviceId, Slot]]) -> None:
        if writes:
            self._folder.look_at(self._folder.tree.apply(writes))
