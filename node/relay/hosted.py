"""One folder at a relay: its log and roster, judged as on any node, without any key.

Positions and roster are kept in memory and follow the storage; entries are judged one batch at a
time. Entries count once the storage has them: only then are they announced or pushed on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from crdt import acceptance
from crdt.entry import START, Entry, EntryKind, LogPosition, build
from crdt.errors import PeerError
from crdt.ids import BlockId, DeviceId, FolderId
from crdt.roster import Roster
from crdt.roster_ops import Op, Role, pack_ops
from crdt.version_vector import VersionVector
from node.relay.limits import Counters, Limits
from node.relay.storage import Storage, StorageFullError, StoredFolder, Usage
from node.sync.bell import Bell
from transport.identity import Identity

logger = logging.getLogger("shoal.relay")

WAITING_MAX: Final = 1_024  # entries that came too early, in one folder
WAITING_SIZE_MAX: Final = 8 * 1024 * 1024  # bytes of them


@dataclass(slots=True)
class _Batch:
    """What a batch of entries would make of the folder."""

    positions: dict[DeviceId, LogPosition]
    roster: Roster
    known: dict[tuple[DeviceId, int], bytes]
    accepted: list[Entry] = field(default_factory=list)
    roster_entries: list[Entry] = field(default_factory=list)
    fault: PeerError | None = None


class HostedFolder:
    """See the module."""

    def __init__(
        self,
        stored: StoredFolder,
        storage: Storage,
        identity: Identity,
        limits: Limits,
        counters: Counters,
    ) -> None:
        self.id: FolderId = stored.folder
        self.sponsor = stored.sponsor
        self.advanced = Bell()  # rings when the log grew
        self.roster_changed = Bell()
        self.deposited = Bell()  # rings when blocks came or went
        self.gone = Bell()  # rings when stored blocks are there no more: damaged, or collected
        self.usage = Usage()
        self.own_log_known = True  # False for a copy: we may have written more than is here
        self.full = ""  # why tree entries are not taken any more
        self.fullness = Bell()  # rings when `full` changes
        self._storage = storage
        self._identity = identity
        self._limits = limits
        self._counters = counters
        self._positions = dict(stored.positions)
        self._roster_entries = list(stored.roster)
        self.roster = Roster.fold(self.id, self._roster_entries)
        self._room = acceptance.WaitingRoom(count_max=WAITING_MAX, size_max=WAITING_SIZE_MAX)
        self._lock = trio.Lock()
        self._remember_log()

    # --- what is here ---------------------------------------------------------------------------

    @property
    def roster_bytes(self) -> list[bytes]:
        """The roster's entries, in causal order."""
        return [entry.to_bytes() for entry in self._roster_entries]

    def role(self, device: DeviceId) -> Role | None:
        """The role of a member; the sponsor's is that of an owner until the roster has come."""
        if not self._positions and device == self.sponsor:
            return Role.OWNER
        return self.roster.role(device)

    def _remember_log(self) -> None:
        self.have = VersionVector({device: at.seq for device, at in self._positions.items()})
        self.heads = {device: at.head for device, at in self._positions.items()}

    async def hashes(
        self, places: Iterable[tuple[DeviceId, int]]
    ) -> dict[tuple[DeviceId, int], bytes]:
        """The hashes of those of these entries that are here."""
        found, asked = {}, []
        for device, seq in places:
            at = self._positions.get(device, START)
            if seq == at.seq:
                found[device, seq] = at.head
            elif seq < at.seq:
                asked.append((device, seq))
        return found | await self._storage.hashes(self.id, asked)

    async def refresh_usage(self) -> Usage:
        """Look up what the folder takes."""
        self.usage = await self._storage.usage(self.id)
        return self.usage

    def member_has(self, have: VersionVector) -> None:
        """A member told what it has: is the end of our own log here the end?"""
        own = self._identity.device
        if have[own] == self.have[own] and have.dominates(self.have):
            self.own_log_known = True

    async def drop(self, blocks: Sequence[BlockId], have: VersionVector, *, now_s: int) -> int:
        """Note that nothing up to `have` needs these blocks; returns how many were here.

        Nothing happens where somebody wrote what the dropper has not seen: it may need them. No
        entry comes in meanwhile.
        """
        async with self._lock:
            if not have.dominates(self.have):
                return 0
            return await self._storage.drop(self.id, blocks, now_s=now_s)

    # --- entries --------------------------------------------------------------------------------

    async def receive(self, batch: Sequence[bytes]) -> None:
        """Judge and store entries as they came over the wire.

        Raises:
            PeerError: the sender broke the protocol; what came before that entry is stored.
        """
        parsed: list[Entry] = []
        fault: PeerError | None = None
        for data in batch:
            try:
                parsed.append(Entry.from_bytes(data))
            except ValueError as error:
                fault = PeerError(f"sent an entry that is malformed: {error}")
                break
        async with self._lock:
            known = await self.hashes((e.header.device, e.header.seq) for e in parsed)
            work = _Batch(dict(self._positions), self.roster, known)
            for entry in parsed:
                self._judge(entry, work)
                if work.fault is not None:
                    break
            await self._store(work)
        fault = work.fault or fault
        if fault is not None:
            self._counters.entries_refused_total += 1
            raise fault

    def _judge(self, entry: Entry, work: _Batch) -> None:
        queue = [entry]
        while queue and work.fault is None:
            entry = queue.pop()
            verdict = acceptance.judge(
                entry,
                positions=work.positions,
                roster=work.roster,
                own=self._identity.device,
                known_hash=lambda device, seq: work.known.get((device, seq)),
            )
            match verdict:
                case acceptance.Accept():
                    queue += self._accept(entry, work)
                case acceptance.Own():
                    # We were restored from an old copy; what continues our log is taken back.
                    at = work.positions.get(entry.header.device, START)
                    if entry.header.seq == at.seq + 1 and entry.header.prev_hash == at.head:
                        logger.warning("took back our own entry %d", entry.header.seq)
                        queue += self._accept(entry, work)
                case acceptance.Wait(blocker=blocker):
                    named = work.roster.named_role(entry.header.device) is not None
                    self._room.offer(entry, blocker, named=named)
                case acceptance.Fork():
                    self._counters.forks_total += 1
                    logger.warning("device %s forked its log", entry.header.device.short)
                case acceptance.Aside(reason=reason):
                    logger.info("an entry was put aside: %s", reason)
                case acceptance.Refuse(error=error):
                    work.fault = error
                case acceptance.Duplicate():
                    pass

    def _accept(self, entry: Entry, work: _Batch) -> list[Entry]:
        header = entry.header
        if header.kind is EntryKind.TREE and self._over_quota(entry):
            self._counters.entries_over_quota_total += 1
            return []
        work.accepted.append(entry)
        work.positions[header.device] = entry.position
        work.known[header.device, header.seq] = entry.hash
        if header.kind is EntryKind.ROSTER:
            work.roster_entries.append(entry)
            work.roster = Roster.fold(self.id, [*self._roster_entries, *work.roster_entries])
        return self._room.accepted(header.device, header.seq)

    def _over_quota(self, entry: Entry) -> bool:
        """Roster entries are always taken: they are few, and without them nobody is kept out."""
        size = len(entry.body) + len(entry.header.packed)
        over = self.usage.total_bytes + size > self._limits.folder_size_max
        self._set_full("the folder's quota is used up" if over else "")
        return over

    def _set_full(self, why: str) -> None:
        if self.full != why:
            self.full = why
            self.fullness.ring()

    async def _store(self, work: _Batch) -> None:
        if not work.accepted:
            return
        try:
            await self._storage.append(self.id, work.accepted)
        except StorageFullError as error:
            self._set_full("the relay's disk is full")
            self._counters.entries_over_quota_total += len(work.accepted)
            logger.warning("entries were not stored: %s", error)
            return
        self._counters.entries_accepted_total += len(work.accepted)
        self._positions = work.positions
        self._roster_entries += work.roster_entries
        self.roster = work.roster
        self._remember_log()
        await self.refresh_usage()
        self.advanced.ring()
        if work.roster_entries:
            self.roster_changed.ring()

    async def write_roster(self, operations: Iterable[Op]) -> None:
        """Write a roster entry of our own; durable when it returns."""
        async with self._lock:
            own = self._identity.device
            entry = build(
                self._identity.seed,
                folder=self.id,
                after=self._positions.get(own, START),
                deps=self.have,
                lamport=max((at.lamport for at in self._positions.values()), default=0) + 1,
                kind=EntryKind.ROSTER,
                body=pack_ops(operations),
            )
            work = _Batch(dict(self._positions), self.roster, {})
            self._accept(entry, work)
            await self._store(work)
