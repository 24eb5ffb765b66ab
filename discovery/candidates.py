"""Where peers might be: addresses from all sources, and when to dial which.

Sans-IO: hints and the outcomes of dials go in, `next_dial` says what to dial; `now` and jitter are
arguments. A hint is never an identity: who is at an address is known by the handshake alone, and
whoever is told here (`reached`) has been through one.

Rules:
1. `next_dial` gives each address that is due, and does not give it again for OFFER_S, in which time
   the driver dials it, or leaves it because it is dialling or connected there already. The driver
   reports how a dial ended: `succeeded`, `failed`, or `reached` when it found out who is there and
   did not need the connection.
2. After a failure, an address is due after a pause that doubles, times the jitter. What was only
   announced on the LAN is dropped after HINT_TTL_S without a new hint; the rest is tried for ever,
   after a day of failures rarely.
3. Addresses of a device that is connected (`up`) are not due, but on `down` they are, soon. When
   its connections do not last, as with one that breaks the protocol each time, the pause doubles.
4. A new hint for an address where nobody answered makes it due at once, but not more often than
   HINT_FRESH_S, so that a stranger's announcements cannot make us dial ever faster.
5. An address where somebody answered who is not wanted, or does not want us, waits for STRANGER_S,
   or until the roster has changed; our own address for OWN_S (the lease may move on).
6. The number of addresses is bounded. Room for a new one is made by dropping the oldest hint, then
   the oldest where a peer once was; what a person named is never dropped.
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import blake3

from crdt.ids import DeviceId, FolderId
from crdt.seal import derive_key
from transport.address import Address

ADDRESSES_MAX: Final = 1024  # a folder's largest roster; memory, and what one look costs
OFFERS_MAX: Final = 16  # addresses given at once; the rest comes at the next look
OFFER_S: Final = 1.0
BACKOFF_MIN_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0  # for a hint: the peer will announce itself when it is back
BACKOFF_RARE_S: Final = 600.0  # for what a person named, after a day of failures
RARE_AFTER: Final = 1500  # failures, about a day of them
STRANGER_S: Final = 30.0  # it may be a member whose news we have not heard, or the reverse
OWN_S: Final = 3600.0
HINT_FRESH_S: Final = 10.0
HINT_TTL_S: Final = 3600.0  # records on the LAN live 75 minutes at most
REDIAL_S: Final = 0.2  # after a connection ended, times the jitter; a restart takes about as long
LASTS_S: Final = 30.0  # a connection that ends sooner after the last one's end did not last

TAG_SIZE: Final = 8  # bytes; no two folders share a tag by chance, and many tags fit a packet
TAG_LENGTH: Final = 13  # characters of a tag's text
_TAG_CONTEXT: Final = "shoal discovery tag v1"


class Source(enum.Enum):
    """Who said so."""

    STATIC = enum.auto()
    INVITATION = enum.auto()
    KNOWN = enum.auto()  # we were let in there, now or in an earlier run
    MDNS = enum.auto()


@dataclass(slots=True)
class _Candidate:
    sources: set[Source]
    due_s: float
    hinted_s: float
    failures: int = 0
    peer: DeviceId | None = None  # who was there last
    unwanted: bool = False  # somebody answered, in vain; rule 5

    @property
    def lasts(self) -> bool:
        return self.sources != {Source.MDNS}


@dataclass(frozen=True, slots=True)
class CandidateState:
    """One address, for status and for remembering across restarts."""

    address: Address
    sources: frozenset[Source]
    peer: DeviceId | None
    failures: int
    due_s: float


class Candidates:
    """See the module. One object a node."""

    def __init__(self) -> None:
        self._known: dict[Address, _Candidate] = {}
        self._up: set[DeviceId] = set()
        self._ends: dict[DeviceId, tuple[float, int]] = {}  # when its last pause was over; flaps

    # --- hints ----------------------------------------------------------------------------------

    def add(self, address: Address, source: Source, now: float) -> None:
        """Somebody says that a peer may be there."""
        if not address.port:
            return
        known = self._known.get(address)
        if known is None:
            if len(self._known) < ADDRESSES_MAX or self._drop_one():
                self._known[address] = _Candidate({source}, now, now)
            return
        fresh = now >= known.hinted_s + HINT_FRESH_S
        known.sources.add(source)
        if fresh and known.failures and not known.unwanted:
            known.due_s, known.failures = min(known.due_s, now), 0
        if fresh or source is not Source.MDNS:
            known.hinted_s = now

    def add_static(self, address: Address, now: float = 0.0) -> None:
        """A person named this address."""
        self.add(address, Source.STATIC, now)

    def withdraw(self, address: Address, source: Source) -> None:
        """`source` says so no more; who is connected stays so."""
        known = self._known.get(address)
        if known is not None:
            known.sources.discard(source)
            if not known.sources:
                del self._known[address]

    # --- dialling -------------------------------------------------------------------------------

    def next_dial(self, now: float) -> list[Address]:
        """The addresses to dial now, those first that failed least; at most OFFERS_MAX."""
        for address in [a for a, one in self._known.items() if self._is_stale(one, now)]:
            del self._known[address]
        due = [
            (one.failures, one.due_s, address)
            for address, one in self._known.items()
            if one.due_s <= now and one.peer not in self._up
        ]
        chosen = [address for _, _, address in sorted(due)[:OFFERS_MAX]]
        for address in chosen:
            self._known[address].due_s = now + OFFER_S
        return chosen

    def next_due(self) -> float | None:
        """When `next_dial` may have something; None: nothing without a new hint."""
        due = (one.due_s for one in self._known.values() if one.peer not in self._up)
        return min(due, default=None)

    def failed(self, address: Address, now: float, jitter: float) -> None:
        """Nobody answered. `jitter` is drawn from 0.5 to 1.5."""
        known = self._known.get(address)
        if known is not None:
            pause_max = BACKOFF_RARE_S if known.failures >= RARE_AFTER else BACKOFF_MAX_S
            pause = min(BACKOFF_MIN_S * 2 ** min(known.failures, 16), pause_max)
            known.failures += 1
            known.unwanted = False
            known.due_s = now + pause * jitter

    def refused(self, address: Address, now: float, jitter: float) -> None:
        """Somebody answered, but it is nobody we want, or it does not want us."""
        known = self._known.get(address)
        if known is not None:
            known.failures += 1
            known.unwanted = True
            known.due_s = now + STRANGER_S * jitter

    def succeeded(self, address: Address, now: float, peer: DeviceId | None = None) -> None:
        """We are connected; with `peer`, this is where it is, and it is up."""
        self.add(address, Source.KNOWN, now)
        known = self._known.get(address)
        if known is not None:
            known.failures, known.unwanted = 0, False
        if peer is not None:
            self.reached(address, peer)
            self.up(peer)

    def reached(self, address: Address, peer: DeviceId) -> None:
        """A handshake proved that `peer` is there, whatever came of it."""
        known = self._known.get(address)
        if known is not None:
            known.peer = peer

    def ours(self, address: Address, now: float) -> None:
        """A handshake proved that this is our own address."""
        known = self._known.get(address)
        if known is not None:
            known.unwanted = True
            known.due_s = now + OWN_S

    def roster_changed(self, now: float) -> None:
        """Members came or went: who was not wanted may be now."""
        for known in self._known.values():
            if known.unwanted and known.due_s < now + STRANGER_S * 2:
                known.due_s = min(known.due_s, now)

    # --- devices --------------------------------------------------------------------------------

    def up(self, peer: DeviceId) -> None:
        """The device is connected, by whichever address and side."""
        self._up.add(peer)

    def down(self, peer: DeviceId, now: float, jitter: float) -> None:
        """The device is not connected any more; its addresses are due soon."""
        self._up.discard(peer)
        resumed_s, flaps = self._ends.get(peer, (-LASTS_S, 0))
        flaps = flaps + 1 if now < resumed_s + LASTS_S else 0
        due_s = now + min(REDIAL_S * 2 ** min(flaps, 16), BACKOFF_MAX_S) * jitter
        self._ends[peer] = due_s, flaps
        for known in self._known.values():
            if known.peer == peer:
                known.due_s = due_s

    def states(self) -> list[CandidateState]:
        """All addresses, sorted."""
        return [
            CandidateState(address, frozenset(one.sources), one.peer, one.failures, one.due_s)
            for address, one in sorted(self._known.items())
        ]

    def _is_stale(self, one: _Candidate, now: float) -> bool:
        return not one.lasts and one.peer not in self._up and now > one.hinted_s + HINT_TTL_S

    def _drop_one(self) -> bool:
        """Make room; False when nothing may go."""
        kept = {Source.STATIC, Source.INVITATION}
        places = [
            (one.lasts, one.hinted_s, address)
            for address, one in self._known.items()
            if not one.sources & kept and (one.peer is None or one.peer not in self._up)
        ]
        if places:
            del self._known[min(places)[2]]
        return bool(places)


# --- what a LAN may see -------------------------------------------------------------------------


def folder_tag(folder: FolderId, day: int) -> str:
    """What announces a folder on one UTC day: a stranger cannot link it to the folder or to
    yesterday's; whoever knows the folder's id can.

    Args:
        folder: The folder.
        day: Days since 1970-01-01 UTC.
    Returns:
        13 characters of lower-case base32.
    """
    key = derive_key(_TAG_CONTEXT, folder)
    digest = blake3.blake3(day.to_bytes(8, "big"), key=key).digest(TAG_SIZE)
    return base64.b32encode(digest).decode().rstrip("=").lower()


def tags_of(folders: Iterable[FolderId], day: int) -> dict[str, FolderId]:
    """The tags under which these folders may be announced on `day`: clocks differ, and midnight
    passes, so yesterday's and tomorrow's count too.
    """
    near = (day - 1, day, day + 1)
    return {folder_tag(folder, one): folder for folder in folders for one in near if one >= 0}
