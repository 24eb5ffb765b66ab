"""One folder's control stream to one peer: who has which entries, and what to send now.

Sans-IO: messages and events go in, effects come out, `now` is an argument. The driver carries the
effects out in order and decides nothing.

    state      hello        have         entries    ack          bye
    NEW        -            -            -          -            -        start -> GREETING
    GREETING   COMPARING    error        error      error        CLOSED
    COMPARING  error        OPEN         error      error        CLOSED
    OPEN       error        error        Deliver    PeerState    CLOSED
    CLOSED     whatever still comes is ignored                            bye, an error -> CLOSED

Both sides start at once: each sends `hello` and `have` without waiting for the other's.

Rules:
1. A node tells its new state before it pushes what is new (`advanced`: ack, then entries), so that
   what a peer pushed is known to be there, and no entry ever goes back where it came from.
2. The peer *has* what it told, what is on its way to it, and what it dropped. The rest it lacks,
   and `Push` asks the driver for it, at most one batch at a time: read from the log what
   `after` lacks, in the order of acceptance, and give it to `send_entries`. An entry is pushed the
   moment it is durable.
3. At most a window of entries is unsettled: sent, and not yet named by the `settled` of an ack. The
   receiver holds the sender to it.
4. An entry that was settled, and that the peer's `have` does not cover, was dropped: it came too
   early for a full waiting room, or is not acceptable yet. It is offered again after a pause that
   doubles, so that neither side can keep the other busy with it.
5. Two different hashes for one seq of one device are a fork. Each side compares the heads that it
   is told with its own log. The driver learns of each device once, and may send its entry as
   evidence; nothing else of that device is pushed, since the peer could not take it.

Failure: `receive` raises PeerError for anything the protocol forbids, and the session is CLOSED.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from crdt.entry import ENTRY_SIZE_MAX
from crdt.errors import PeerError
from crdt.ids import DeviceId, FolderId
from crdt.version_vector import COUNTER_MAX, EMPTY, VersionVector
from transport.messages import (
    ENTRIES_MAX,
    Ack,
    Bye,
    Entries,
    Have,
    Heads,
    Hello,
    Message,
    delta,
    plain_reason,
)

WINDOW_SIZE: Final = 8 * 1024 * 1024  # unsettled bytes; keeps a fast link busy through a commit
WINDOW_ENTRIES: Final = 4096  # unsettled entries, for when they are small
PUSH_SIZE_MAX: Final = 1024 * 1024  # bytes a batch; the receiver commits one while the next travels
RETRY_MIN_S: Final = 2.0  # before dropped entries are offered again: what they lacked may have come
RETRY_MAX_S: Final = 600.0

KnownHash = Callable[[DeviceId, int], bytes | None]
"""The hash of entry `seq` of a device, None when it is not (or no more) in our log."""


class SessionState(enum.Enum):
    """See the table above."""

    NEW = enum.auto()
    GREETING = enum.auto()
    COMPARING = enum.auto()
    OPEN = enum.auto()
    CLOSED = enum.auto()


@dataclass(frozen=True, slots=True)
class LogEntry:
    """An entry as the log holds it, and where it stands there."""

    device: DeviceId
    seq: int
    entry: bytes = field(repr=False)


# --- effects ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Put this message on the stream."""

    message: Message


@dataclass(frozen=True, slots=True)
class Push:
    """Read what `after` lacks, at most `size_max` bytes but one entry at least and `ENTRIES_MAX` at
    most, and call `send_entries` with it; with nothing, when the log holds nothing more.
    """

    after: VersionVector
    size_max: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """Judge and store these, then call `advanced` with `settled` saying how many it were."""

    entries: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PeerState:
    """The peer told something new: what is durable there, and what lies on its disk in whole."""

    have: VersionVector
    complete: VersionVector


@dataclass(frozen=True, slots=True)
class Diverged:
    """The peer holds another entry `seq` of `device` than we do, with this hash: a fork."""

    device: DeviceId
    seq: int
    theirs: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The peer said bye; `code` is a `transport.link.CloseCode` or one that we do not know."""

    code: int
    reason: str


Effect = Send | Push | Deliver | PeerState | Diverged | Ended


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """Counts since the session began, but for the unsettled and the dropped: these are now."""

    sent_entries: int
    received_entries: int
    unsettled_entries: int
    unsettled_bytes: int
    dropped_devices: int
    retries: int


@dataclass(slots=True)
class _Window:
    """Entries that one side has sent and the other has not settled, oldest first."""

    positions: deque[tuple[DeviceId | None, int, int]] = field(default_factory=deque)
    size: int = 0

    def add(self, device: DeviceId | None, seq: int, size: int) -> None:
        self.positions.append((device, seq, size))
        self.size += size

    def settle(self) -> tuple[DeviceId | None, int]:
        device, seq, size = self.positions.popleft()
        self.size -= size
        return device, seq


class FolderSession:
    """See the module. One object a control stream; a new connection starts anew."""

    def __init__(self, folder: FolderId, *, name: str, agent: str, known_hash: KnownHash) -> None:
        """Args: `name` is our device's, `agent` our program's; `known_hash` looks into our log."""
        self._hello = Hello(folder, name, agent)
        self._known_hash = known_hash
        self._state = SessionState.NEW
        self._peer: Hello | None = None
        self._have = EMPTY  # ours, as last told
        self._complete = EMPTY
        self._peer_have = EMPTY
        self._peer_complete = EMPTY
        self._offered = EMPTY  # what the peer has in the sense of rule 2
        self._outgoing = _Window()
        self._incoming = _Window()
        self._pushing = False
        self._dropped: dict[DeviceId, int] = {}
        self._diverged: set[DeviceId] = set()
        self._retry_at_s: float | None = None
        self._retry_delay_s = RETRY_MIN_S
        self._sent = self._received = self._retries = 0

    # --- what others may look at ----------------------------------------------------------------

    @property
    def state(self) -> SessionState:
        """See the table above."""
        return self._state

    @property
    def peer(self) -> Hello | None:
        """What the peer said of itself; names are for people, nothing rests on them."""
        return self._peer

    @property
    def peer_have(self) -> VersionVector:
        """What the peer last told to be durable there."""
        return self._peer_have

    @property
    def peer_complete(self) -> VersionVector:
        """The log position whose whole content lies on the peer's disk."""
        return self._peer_complete

    @property
    def offered(self) -> VersionVector:
        """What not to send: what the peer has, what is on its way, and what it dropped."""
        return self._offered

    def wanted_ranges(self) -> list[tuple[DeviceId, int, int]]:
        """What the peer lacks of ours and was not sent: device, first and last seq."""
        return [
            (device, self._offered[device] + 1, seq)
            for device, seq in sorted(self._have.items())
            if seq > self._offered[device]
        ]

    def next_tick(self) -> float | None:
        """When `tick` wants to be called; None: nothing to wait for."""
        return None if self._state is SessionState.CLOSED else self._retry_at_s

    def statistics(self) -> SessionStatistics:
        """For status and tests."""
        return SessionStatistics(
            sent_entries=self._sent,
            received_entries=self._received,
            unsettled_entries=len(self._outgoing.positions),
            unsettled_bytes=self._outgoing.size,
            dropped_devices=len(self._dropped),
            retries=self._retries,
        )

    # --- our side -------------------------------------------------------------------------------

    def start(self, have: VersionVector, complete: VersionVector, heads: Heads) -> list[Effect]:
        """Greet the peer; the state is ours now, all of it durable."""
        assert self._state is SessionState.NEW, "a session starts once"
        self._state = SessionState.GREETING
        self._have, self._complete = have, complete
        return [Send(self._hello), Send(Have(have, complete, dict(heads)))]

    def advanced(
        self, have: VersionVector, complete: VersionVector, heads: Heads, *, settled: int = 0
    ) -> list[Effect]:
        """Our log or disk got further, or delivered entries were dealt with.

        Args:
            have: What is durable here, all of it.
            complete: The log position whose whole content lies on our disk.
            heads: The hash of the last entry of every device in `have`.
            settled: How many entries of the oldest `Deliver`s have been taken in or dropped.
        """
        assert self._state is not SessionState.NEW, "start first"
        if self._state is SessionState.CLOSED:
            return []
        assert settled <= len(self._incoming.positions), "more settled than delivered"
        for _ in range(settled):
            self._incoming.settle()
        new, done = delta(have, self._have), delta(complete, self._complete)
        self._have |= new
        self._complete |= done
        effects: list[Effect] = []
        if new or done or settled:
            changed = {device: heads[device] for device in new}
            effects.append(Send(Ack(new, done, changed, settled)))
        return effects + self._push()

    def send_entries(self, batch: Sequence[LogEntry]) -> list[Effect]:
        """The answer to `Push`: entries that continue what was `offered`, device by device."""
        if self._state is SessionState.CLOSED:
            return []
        assert self._pushing, "entries are sent when a Push asks for them"
        assert len(batch) <= ENTRIES_MAX
        self._pushing = False
        if not batch:
            return []  # our log is shorter than we said: a rollback, or it was tidied
        offered = dict(self._offered)
        for one in batch:
            before = offered.get(one.device, 0)
            assert one.seq == before + 1, f"entry {one.seq} cannot follow {before}"
            offered[one.device] = one.seq
            self._outgoing.add(one.device, one.seq, len(one.entry))
        self._offered = VersionVector(offered)
        self._sent += len(batch)
        return [Send(Entries(tuple(one.entry for one in batch))), *self._push()]

    def send_evidence(self, entry: bytes) -> list[Effect]:
        """Send our entry where the peer holds another one, after `Diverged`; nothing if there is no
        room now.
        """
        if self._state is not SessionState.OPEN or not self._room():
            return []
        self._outgoing.add(None, 0, len(entry))
        self._sent += 1
        return [Send(Entries((entry,)))]

    def bye(self, code: int, reason: str = "") -> list[Effect]:
        """End the session, and tell the peer why. Idempotent."""
        told = self._state not in {SessionState.NEW, SessionState.CLOSED}
        self._state = SessionState.CLOSED
        return [Send(Bye(code, plain_reason(reason)))] if told else []

    def tick(self, now: float) -> list[Effect]:
        """Offer what was dropped again, when it is time."""
        if self._state is not SessionState.OPEN or self._retry_at_s is None:
            return []
        if now < self._retry_at_s:
            return []
        self._retries += 1
        self._retry_at_s = None
        self._retry_delay_s = min(2 * self._retry_delay_s, RETRY_MAX_S)
        self._dropped.clear()
        never = VersionVector(dict.fromkeys(self._diverged, COUNTER_MAX))
        self._offered = self._peer_have | self._on_their_way() | never
        return self._push()

    # --- the peer's side ------------------------------------------------------------------------

    def receive(self, message: Message, *, now: float) -> list[Effect]:
        """Take in the peer's next message.

        Raises:
            PeerError: it breaks the protocol; the session is over.
        """
        assert self._state is not SessionState.NEW, "start first"
        if self._state is SessionState.CLOSED:
            return []
        try:
            return self._receive(message, now)
        except PeerError:
            self._state = SessionState.CLOSED
            raise

    def _receive(self, message: Message, now: float) -> list[Effect]:
        match self._state, message:
            case _, Bye(code=code, reason=reason):
                self._state = SessionState.CLOSED
                return [Ended(code, reason)]
            case SessionState.GREETING, Hello():
                if message.folder != self._hello.folder:
                    raise PeerError("answered for another folder")
                self._peer = message
                self._state = SessionState.COMPARING
                return []
            case SessionState.COMPARING, Have():
                self._state = SessionState.OPEN
                return [*self._learn(message), *self._push()]
            case SessionState.OPEN, Entries(entries=entries):
                return self._take_entries(entries)
            case SessionState.OPEN, Ack():
                effects = self._learn(message)
                self._settle(message.settled, now)
                return effects + self._push()
            case state, _:
                what = type(message).__name__
                raise PeerError(f"sent {what} while {state.name.lower()}, out of turn")

    def _learn(self, told: Have | Ack) -> list[Effect]:
        """Merge what the peer told of its state; compare its heads with our log."""
        before = self._peer_have, self._peer_complete
        try:
            self._peer_have |= told.have
            self._peer_complete |= told.complete
            self._offered |= told.have
        except ValueError as error:  # deltas that add up to more devices than a folder has
            raise PeerError(f"told an impossible state: {error}") from None
        effects: list[Effect] = []
        if isinstance(told, Have) or before != (self._peer_have, self._peer_complete):
            effects.append(PeerState(self._peer_have, self._peer_complete))
        for device, theirs in told.heads.items():
            seq = told.have[device]
            ours = self._known_hash(device, seq) if self._have.covers(device, seq) else None
            if ours not in {None, theirs} and device not in self._diverged:
                self._diverged.add(device)
                self._offered = self._offered.with_counter(device, COUNTER_MAX)
                effects.append(Diverged(device, seq, theirs))
        return effects

    def _take_entries(self, entries: tuple[bytes, ...]) -> list[Effect]:
        for entry in entries:
            self._incoming.add(None, 0, len(entry))
        # The sender looks at its window before a batch, so the last one may stick out of it.
        if (
            self._incoming.size > WINDOW_SIZE + ENTRY_SIZE_MAX
            or len(self._incoming.positions) > WINDOW_ENTRIES + ENTRIES_MAX
        ):
            raise PeerError("sent more entries than its window allows")
        self._received += len(entries)
        return [Deliver(entries)]

    def _settle(self, count: int, now: float) -> None:
        if count > len(self._outgoing.positions):
            raise PeerError(f"settled {count} entries, more than were sent")
        for _ in range(count):
            device, seq = self._outgoing.settle()
            if device is not None and device not in self._diverged:
                self._dropped[device] = max(seq, self._dropped.get(device, 0))
        covered = self._peer_have.covers
        self._dropped = {d: seq for d, seq in self._dropped.items() if not covered(d, seq)}
        if not self._dropped:
            self._retry_at_s = None
            if not self._outgoing.positions:
                self._retry_delay_s = RETRY_MIN_S
        elif self._retry_at_s is None:
            self._retry_at_s = now + self._retry_delay_s

    # --- pushing --------------------------------------------------------------------------------

    def _push(self) -> list[Effect]:
        if self._state is not SessionState.OPEN or self._pushing:
            return []
        room = self._room()
        if not room or self._offered.dominates(self._have):
            return []
        self._pushing = True
        return [Push(self._offered, min(room, PUSH_SIZE_MAX))]

    def _room(self) -> int:
        """Bytes that may be sent now."""
        if len(self._outgoing.positions) >= WINDOW_ENTRIES:
            return 0
        return max(0, WINDOW_SIZE - self._outgoing.size)

    def _on_their_way(self) -> VersionVector:
        return VersionVector(
            {d: seq for d, seq, _ in self._outgoing.positions if d is not None}  # the last counts
        )
