"""Whether an entry may enter the log, and where those wait that came too early.

`judge` is pure; the rules, in order:
1. It is of this folder. 2. One we hold already is a duplicate. 3. Its author signed it.
4. An entry of our own that we lack means that we were restored from an old copy.
5. Another entry with a seq that we hold, or one that does not follow the one before, proves a fork.
6. `seq` is contiguous and `deps` are met, else it waits.
7. Lamports grow along a log and do not jump.
8. Its author is a device that the roster names, with a role that allows the kind, and had not
   already seen its own removal, or for a tree entry that it may only read now.
9. A tree entry names a known epoch, a roster entry has a well-formed body.

What the sender must not have sent is `Refuse`: drop the peer. What an honest peer may send before
it has heard what we have heard is `Aside`: drop the entry, keep the peer; it may be sent again and
be fine then. An accepted entry of a removed device past its last one does not count
(`Roster.counts`, which changes with the roster): it lies in the log so that all logs stay equal,
and has no effect.

Failure: nothing raises; every outcome is a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from crdt.entry import START, Entry, EntryKind, LogPosition
from crdt.errors import PeerError
from crdt.ids import DeviceId
from crdt.roster import Roster
from crdt.roster_ops import Genesis, Op, parse_ops
from crdt.version_vector import VersionVector

LAMPORT_JUMP_MAX: Final = 2**32  # beyond the greatest known; 2**21 such jumps reach COUNTER_MAX
WAITING_MAX: Final = 8192  # entries in one waiting room
WAITING_SIZE_MAX: Final = 64 * 1024 * 1024  # bytes in one waiting room
WAITING_SHARE: Final = 4  # one device may fill at most 1/4 of the room

KnownHash = Callable[[DeviceId, int], bytes | None]
"""The hash of entry `seq` of a device, None when it is not (or no more) in our log."""


@dataclass(frozen=True, slots=True)
class Accept:
    """Take it into the log. `counts` is False when it has no effect (for now)."""

    counts: bool


@dataclass(frozen=True, slots=True)
class Duplicate:
    """We hold it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """It came before `missing`; `blocker` is one of these, to wait for first."""

    missing: VersionVector
    blocker: tuple[DeviceId, int]


@dataclass(frozen=True, slots=True)
class Fork:
    """The author signed two different entries where only one can be: keep both as evidence.

    `known_seq` is the seq of the entry of ours that contradicts `entry`.
    """

    entry: Entry
    known_seq: int


@dataclass(frozen=True, slots=True)
class Own:
    """An entry of our own that we lack: this device was restored from an old copy."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Aside:
    """Not acceptable as far as we know, which is not the sender's fault."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Whoever sent this broke the protocol."""

    error: PeerError


Verdict = Accept | Duplicate | Wait | Fork | Own | Aside | Refuse


def judge(
    entry: Entry,
    *,
    positions: Mapping[DeviceId, LogPosition],
    roster: Roster,
    own: DeviceId,
    known_hash: KnownHash,
) -> Verdict:
    """What to do with `entry`, parsed by `Entry.from_bytes`.

    Args:
        entry: What a peer sent.
        positions: Where each device's log ends here.
        roster: The fold of the roster entries in these logs.
        own: This device.
        known_hash: Finds the hashes of held entries.
    """
    header = entry.header
    if header.folder != roster.folder:
        return _refuse(entry, "belongs to another folder")
    position = positions.get(header.device, START)
    held = header.seq <= position.seq
    known = known_hash(header.device, header.seq) if held else None
    if held and known in {None, entry.hash}:
        return Duplicate()
    if not entry.verify_signature():
        return _refuse(entry, "has a wrong signature")
    if held:
        return Fork(entry, header.seq)
    if header.device == own:
        return Own(entry)
    wait = _missing(entry, positions)
    if header.seq == position.seq + 1 and header.prev_hash != position.head:
        return Fork(entry, position.seq)
    if wait is not None:
        return wait
    lamport_max = max((one.lamport for one in positions.values()), default=0)
    if not position.lamport < header.lamport <= lamport_max + LAMPORT_JUMP_MAX:
        return _refuse(entry, f"has lamport {header.lamport}, which goes back or too far ahead")
    return _judge_standing(entry, roster)


def _missing(entry: Entry, positions: Mapping[DeviceId, LogPosition]) -> Wait | None:
    """What of the entry's deps, its author's own log included, we lack."""
    missing = {
        device: seq
        for device, seq in entry.header.deps.items()
        if positions.get(device, START).seq < seq
    }
    if not missing:
        return None
    author = entry.header.device
    blocker = author if author in missing else min(missing)
    return Wait(VersionVector(missing), (blocker, missing[blocker]))


def _judge_standing(entry: Entry, roster: Roster) -> Verdict:
    """Rules 8 and 9: who wrote it, and whether the body fits."""
    header = entry.header
    ops: tuple[Op, ...] = ()
    if header.kind is EntryKind.ROSTER:
        try:
            ops = parse_ops(entry.body)
        except ValueError as error:
            return _refuse(entry, f"is malformed: {error}")
    role = roster.named_role(header.device)
    if role is None:
        if ops and header.seq == 1 and _begins(ops[0], entry):
            return Accept(counts=True)
        return Aside(f"device {header.device.short} is not a member of this folder")
    if roster.knew_removal(entry):
        return Aside(
            f"device {header.device.short} was removed, and wrote entry {header.seq} after"
        )
    if header.kind is EntryKind.TREE:
        if not role.writes:
            return _refuse(entry, f"writes, but its role is {role.name.lower()}")
        if roster.knew_lowering(entry):
            return Aside(f"device {header.device.short} may only read, and knew that")
        if header.epoch not in roster.epochs:
            return _refuse(entry, f"names epoch {header.epoch}, which does not exist")
    return Accept(counts=roster.counts(header.device, header.seq))


def _begins(op: Op, entry: Entry) -> bool:
    header = entry.header
    return isinstance(op, Genesis) and op.folder == header.folder and op.owner == header.device


def _refuse(entry: Entry, what: str) -> Refuse:
    header = entry.header
    return Refuse(PeerError(f"entry {header.seq} of device {header.device.short} {what}"))


@dataclass(frozen=True, slots=True)
class WaitingStatistics:
    """What a waiting room holds, and how many entries it had no room for."""

    entries: int
    size: int
    turned_away: int


class WaitingRoom:
    """Entries whose deps are not met, each under the one entry that it waits for first.

    Bounded in entries and bytes, in all and for each author; devices that the roster does not name
    share one author's part, so that made-up keys cannot fill the room. What finds no room is
    dropped: the sender is asked again once we have caught up. No clock, no I/O.
    """

    def __init__(self, *, count_max: int = WAITING_MAX, size_max: int = WAITING_SIZE_MAX) -> None:
        self._count_max = count_max
        self._size_max = size_max
        self._blocked: dict[tuple[DeviceId, int], list[Entry]] = {}
        self._held: dict[bytes, DeviceId | None] = {}  # hash -> whose part it takes
        self._used: dict[DeviceId | None, tuple[int, int]] = {}  # part -> entries, bytes
        self._turned_away = 0

    def offer(self, entry: Entry, blocker: tuple[DeviceId, int], *, named: bool) -> bool:
        """Keep `entry` until `blocker` is accepted; False when there is no room for it.

        `named` says whether the roster names the author. One that is held already stays once.
        """
        if entry.hash in self._held:
            return True
        part = entry.header.device if named else None
        count, size = self._used.get(part, (0, 0))
        count, size = count + 1, size + _size(entry)
        total = self.statistics()
        if (
            count > self._count_max // WAITING_SHARE
            or size > self._size_max // WAITING_SHARE
            or total.entries + 1 > self._count_max
            or total.size + _size(entry) > self._size_max
        ):
            self._turned_away += 1
            return False
        self._held[entry.hash] = part
        self._used[part] = count, size
        self._blocked.setdefault(blocker, []).append(entry)
        return True

    def accepted(self, device: DeviceId, seq: int) -> list[Entry]:
        """Take out the entries that waited for this one, to be judged again."""
        return self._take(self._blocked.pop((device, seq), []))

    def take_all(self) -> list[Entry]:
        """Take out everything, in causal order as far as one log goes: after a snapshot, say."""
        entries = [entry for waiting in self._blocked.values() for entry in waiting]
        self._blocked.clear()
        return sorted(self._take(entries), key=lambda one: (one.header.lamport, one.hash))

    def statistics(self) -> WaitingStatistics:
        """What is held now."""
        size = sum(size for _, size in self._used.values())
        return WaitingStatistics(len(self._held), size, self._turned_away)

    def _take(self, entries: list[Entry]) -> list[Entry]:
        for entry in entries:
            part = self._held.pop(entry.hash)
            count, size = self._used[part]
            if count == 1:
                del self._used[part]
            else:
                self._used[part] = count - 1, size - _size(entry)
        return entries


def _size(entry: Entry) -> int:
    """Bytes that a waiting entry takes; the header's objects weigh a few times their encoding."""
    return len(entry.body) + 4 * len(entry.header.packed)
