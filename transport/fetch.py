"""Fetches one folder's blocks from all peers that are connected.

Sans-IO: wants and answers go in, effects come out, `now` is an argument. `want` and `cancel` only
note; the requests come with the next `tick`, so that many wants become few requests: call it after
a bunch of wants, and at `next_tick`.

A wanted block is in one of these states:

    open      nobody is in charge of it. Fresh, it is in the shared queue, and every peer qualifies
              for it. Once somebody failed to bring it, it is in the own queue of each peer that
              still qualifies (none, while one owes it and the rest lack it)
    asked     one peer is in charge of it (`holder`)
    parked    every connected peer said that it lacks it -> `Unavailable`; open again after a
              pause that doubles, when a peer joins, or when one is heard to have it
    gone      delivered or cancelled

Rules:
1. Small transfers before large ones: by `priority` (see `priority_of`), then by `rank`, then first
   come, first served. Up to URGENT_PRIORITY a block goes in urgent requests, which have credit of
   their own and belong on a stream of their own, so that they never wait behind bulk. Each of the
   two asks again when half of its credit is back: in batches, and early enough.
2. The peer with the fewest bytes in flight gets the next block, so that peers share the load. A
   reserve (a relay, which is far away and shared by many) counts as having RESERVE_LOAD more.
3. What is outstanding at one peer is bounded in blocks and bytes. Credit returns by its answers
   only: a peer that was given up may still send what it was asked for.
4. A peer that says nothing for STALL_S, or takes longer than SLOW_S for a block, is slow: others
   may be asked for the blocks that it is in charge of, and it is asked for nothing more until it
   answers. Its late answer is as good as any. It is never asked twice for what it still owes.
5. What nobody asked that peer for is a PeerError, out of `received` or `missing`; the driver drops
   the peer. What came in vain (late, cancelled) is counted and ignored.

Each operation costs O(log n) for n wants, times the number of peers where a block changes queues;
a peer that joins costs once the blocks that some other peer did not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Final

from crdt.errors import PeerError
from crdt.ids import BlockId, DeviceId
from transport.fields import REQUEST_MAX, WANT_MAX
from transport.messages import Want

IN_FLIGHT_MAX: Final = WANT_MAX // 2  # blocks outstanding at one peer, urgent and bulk each
BULK_SIZE_MAX: Final = 8 * 1024 * 1024  # bytes of bulk outstanding at one peer; bounds our memory
URGENT_SIZE_MAX: Final = 2 * 1024 * 1024  # bytes of the urgent, beside that
URGENT_PRIORITY: Final = 20  # transfers below 1 MiB
RESERVE_LOAD: Final = 4 * 1024 * 1024  # bytes outstanding at others before a reserve is asked
STALL_S: Final = 10.0  # without a byte while we wait; the link itself notices a dead peer in 20 s
SLOW_S: Final = 60.0  # for one block, however steadily its bytes trickle
RETRY_MIN_S: Final = 2.0  # before all are asked again for what none had
RETRY_MAX_S: Final = 300.0
HEAP_SLACK: Final = 1024  # stale elements that a heap may hold beyond twice the wants

Rank = Callable[[BlockId], int]
Key = tuple[int, int, int]


def priority_of(transfer_size: int) -> int:
    """The priority of every block of a transfer of so many bytes: the smaller goes first."""
    return max(0, transfer_size - 1).bit_length()


# --- effects ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """Send this `Want`; an urgent one on a stream where it waits behind no bulk."""

    peer: DeviceId
    want: Want
    urgent: bool


@dataclass(frozen=True, slots=True)
class Deliver:
    """The block that was just received is the one wanted; open and check it."""

    block: BlockId


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Every connected peer said that it does not have this block; they will be asked again."""

    block: BlockId


@dataclass(frozen=True, slots=True)
class PeerSlow:
    """The peer is waited for no more; it is the link's business whether it still lives."""

    peer: DeviceId


Effect = Request | Deliver | Unavailable | PeerSlow


@dataclass(frozen=True, slots=True)
class FetchStatistics:
    """The first four are now, the rest since the start; sizes are bytes as they travelled."""

    wanted: int
    unavailable: int
    in_flight: int
    in_flight_bytes: int
    delivered: int
    delivered_bytes: int
    in_vain: int
    given_up: int


@dataclass(slots=True, eq=False)
class _Wanted:
    block: BlockId
    length: int
    key: Key
    holder: DeviceId | None = None
    shared: bool = True  # in the shared queue, else in the peers' own
    lacks: set[DeviceId] = field(default_factory=set)  # connected peers that said so
    retry_at_s: float | None = None  # set: parked
    retry_delay_s: float = RETRY_MIN_S

    @property
    def urgent(self) -> bool:
        return self.key[0] <= URGENT_PRIORITY


@dataclass(slots=True, eq=False)
class _Lane:
    """What is outstanding at one peer, of the urgent or of the bulk."""

    size_max: int
    blocks: int = 0
    size: int = 0

    def has_room(self, length: int) -> bool:
        # A block larger than all credit must get through too, alone.
        return not self.blocks or (
            self.blocks < IN_FLIGHT_MAX and self.size + length <= self.size_max
        )

    def may_ask(self) -> bool:
        return 2 * self.blocks <= IN_FLIGHT_MAX and 2 * self.size <= self.size_max


@dataclass(frozen=True, slots=True)
class _Asked:
    request: int
    length: int
    at_s: float
    lane: _Lane


@dataclass(slots=True, eq=False)
class _Peer:
    device: DeviceId
    heard_at_s: float
    asked: dict[BlockId, _Asked] = field(default_factory=dict)  # oldest first
    lacking: set[BlockId] = field(default_factory=set)
    queue: list[tuple[Key, BlockId]] = field(default_factory=list)
    urgent: _Lane = field(default_factory=lambda: _Lane(URGENT_SIZE_MAX))
    bulk: _Lane = field(default_factory=lambda: _Lane(BULK_SIZE_MAX))
    slow: bool = False
    reserve: bool = False

    @property
    def load(self) -> int:
        return self.urgent.size + self.bulk.size + RESERVE_LOAD * self.reserve

    def lane(self, want: _Wanted) -> _Lane:
        return self.urgent if want.urgent else self.bulk

    def qualifies(self, want: _Wanted) -> bool:
        return self.device not in want.lacks and want.block not in self.asked


class Fetcher:
    """See the module."""

    def __init__(self, *, rank: Rank = lambda block: 0) -> None:
        """Args: `rank` orders blocks of one priority, smaller first, asked once when a block is
        wanted: how many are known to hold it (rarest first), or a shuffle, so that devices which
        fetch the same file fetch different parts of it and then serve each other.
        """
        self._rank = rank
        self._wants: dict[BlockId, _Wanted] = {}
        self._peers: dict[DeviceId, _Peer] = {}
        self._shared: list[tuple[Key, BlockId]] = []
        self._own: dict[BlockId, None] = {}  # open wants that are not in the shared queue
        self._parked: list[tuple[float, BlockId]] = []
        self._number = 0
        self._request = 0
        self._delivered = self._delivered_bytes = self._in_vain = self._given_up = 0

    # --- what we want ---------------------------------------------------------------------------

    def want(self, block: BlockId, length: int, priority: int) -> None:
        """Fetch `block`, of `length` bytes of plaintext; again, it can only become more urgent."""
        known = self._wants.get(block)
        if known is None:
            self._number += 1
            key = (priority, self._rank(block), self._number)
            known = self._wants[block] = _Wanted(block, length, key)
            for peer in self._peers.values():
                if block in peer.asked:  # it was cancelled, and is still on its way
                    known.holder, known.shared = peer.device, False
                    return
            self._push(self._shared, known)
        elif priority < known.key[0]:
            known.key = (priority, *known.key[1:])
            if known.shared:
                self._push(self._shared, known)
            elif known.holder is None:
                self._push_own(known)

    def cancel(self, block: BlockId) -> None:
        """Fetch it no more; nothing happens when it was not wanted."""
        want = self._wants.pop(block, None)
        if want is not None:
            self._forget(want)

    # --- peers ----------------------------------------------------------------------------------

    def peer_added(self, device: DeviceId, *, now: float, reserve: bool = False) -> list[Effect]:
        """A peer that takes requests has connected; a `reserve` is asked where others are busy."""
        assert device not in self._peers, "one connection a peer"
        peer = self._peers[device] = _Peer(device, now, reserve=reserve)
        for block in self._own:
            open_want = self._wants[block]
            open_want.retry_at_s = None
            peer.queue.append((open_want.key, block))
        heapify(peer.queue)
        return self._fill(now)

    def peer_removed(self, device: DeviceId, *, now: float) -> list[Effect]:
        """It is gone; others are asked for what it owed."""
        peer = self._peers.pop(device, None)
        if peer is None:
            return []
        for block in peer.lacking:
            self._wants[block].lacks.discard(device)
        effects: list[Effect] = []
        for block in peer.asked:
            want = self._wants.get(block)
            if want is not None and want.holder in {None, device} and not want.shared:
                effects += self._offer(want, now)
        for block in list(self._own):  # those that only this peer had been left to be asked for
            want = self._wants[block]
            if want.retry_at_s is None and all(d in want.lacks for d in self._peers):
                effects += self._offer(want, now)
        return effects + self._fill(now)

    def has(self, device: DeviceId, block: BlockId, *, now: float) -> list[Effect]:
        """A peer is heard to have a block, which it may have denied before."""
        want, peer = self._wants.get(block), self._peers.get(device)
        if want is None or peer is None:
            return []
        want.lacks.discard(device)
        peer.lacking.discard(block)
        if not want.shared and want.holder is None:
            want.retry_at_s = None
            self._push(peer.queue, want)
        return self._fill(now)

    def heard(self, device: DeviceId, *, now: float) -> None:
        """Some bytes of an answer have come from this peer."""
        self._peers[device].heard_at_s = now

    # --- answers --------------------------------------------------------------------------------

    def received(
        self, device: DeviceId, request: int, block: BlockId, size: int, *, now: float
    ) -> list[Effect]:
        """A peer sent a block, sealed in `size` bytes. Only with `Deliver` is it still of use.

        Raises:
            PeerError: it was not asked for that.
        """
        self._take_answer(device, request, block, now)
        want = self._wants.pop(block, None)
        if want is None:
            self._in_vain += 1
            return self._fill(now)
        self._forget(want)
        self._delivered += 1
        self._delivered_bytes += size
        return [Deliver(block), *self._fill(now)]

    def missing(
        self, device: DeviceId, request: int, blocks: Iterable[BlockId], *, now: float
    ) -> list[Effect]:
        """A peer does not have these blocks.

        Raises:
            PeerError: it was not asked for one of them.
        """
        effects: list[Effect] = []
        for block in blocks:
            peer = self._take_answer(device, request, block, now)
            want = self._wants.get(block)
            if want is None:
                continue
            want.lacks.add(device)
            peer.lacking.add(block)
            if want.holder in {None, device} and not want.shared:
                effects += self._offer(want, now)
        return effects + self._fill(now)

    def useless(
        self, device: DeviceId, block: BlockId, length: int, priority: int, *, now: float
    ) -> list[Effect]:
        """What `device` just delivered is of no use: want it of others first."""
        self.want(block, length, priority)
        want, peer = self._wants[block], self._peers.get(device)
        if peer is None:
            return []
        want.lacks.add(device)
        peer.lacking.add(block)
        return [*self._offer(want, now), *self._fill(now)]

    # --- time -----------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """Ask for what was wanted since; give up on slow peers; retry what none had."""
        effects: list[Effect] = []
        for peer in self._peers.values():
            overdue = self._overdue(peer, now)
            if overdue and not peer.slow:
                peer.slow = True
                effects.append(PeerSlow(peer.device))
            for want in overdue:
                self._given_up += 1
                effects += self._offer(want, now)
        while self._parked and self._parked[0][0] <= now:
            at, block = heappop(self._parked)
            parked = self._wants.get(block)
            if parked is not None and parked.retry_at_s == at:
                for device in parked.lacks:
                    self._peers[device].lacking.discard(block)
                parked.lacks.clear()
                parked.retry_at_s = None
                effects += self._offer(parked, now)
        return effects + self._fill(now)

    def next_tick(self) -> float | None:
        """When `tick` wants to be called if nothing happens before; None: only after a `want`."""
        times = [self._parked[0][0]] if self._parked else []
        for peer in self._peers.values():
            for block, asked in peer.asked.items():
                want = self._wants.get(block)
                if want is not None and want.holder == peer.device:
                    times.append(min(peer.heard_at_s + STALL_S, asked.at_s + SLOW_S))
                    break
        return min(times, default=None)

    def statistics(self) -> FetchStatistics:
        """For status and tests."""
        peers = self._peers.values()
        return FetchStatistics(
            wanted=len(self._wants),
            unavailable=sum(self._wants[b].retry_at_s is not None for b in self._own),
            in_flight=sum(len(peer.asked) for peer in peers),
            in_flight_bytes=sum(peer.urgent.size + peer.bulk.size for peer in peers),
            delivered=self._delivered,
            delivered_bytes=self._delivered_bytes,
            in_vain=self._in_vain,
            given_up=self._given_up,
        )

    # --- states of a want -----------------------------------------------------------------------

    def _offer(self, want: _Wanted, now: float) -> list[Effect]:
        """Open it to every peer that qualifies; park it if all have said that they lack it."""
        want.holder, want.shared = None, False
        self._own[want.block] = None
        if self._push_own(want) or not self._peers or want.retry_at_s is not None:
            return []
        if any(device not in want.lacks for device in self._peers):
            return []  # one still owes it
        want.retry_at_s = now + want.retry_delay_s
        want.retry_delay_s = min(2 * want.retry_delay_s, RETRY_MAX_S)
        heappush(self._parked, (want.retry_at_s, want.block))
        return [Unavailable(want.block)]

    def _push_own(self, want: _Wanted) -> bool:
        fit = [peer for peer in self._peers.values() if peer.qualifies(want)]
        for peer in fit:
            self._push(peer.queue, want)
        return bool(fit)

    def _forget(self, want: _Wanted) -> None:
        """Clean up after a want that has been taken out."""
        self._own.pop(want.block, None)
        for device in want.lacks:
            self._peers[device].lacking.discard(want.block)

    def _take_answer(self, device: DeviceId, request: int, block: BlockId, now: float) -> _Peer:
        peer = self._peers[device]
        asked = peer.asked.get(block)
        if asked is None or asked.request != request:
            raise PeerError(f"answered for block {block}, which it was not asked for")
        del peer.asked[block]
        asked.lane.blocks -= 1
        asked.lane.size -= asked.length
        peer.heard_at_s = now
        peer.slow = False
        return peer

    def _overdue(self, peer: _Peer, now: float) -> list[_Wanted]:
        """What the peer is in charge of and has had its time for."""
        overdue = []
        stalled = now >= peer.heard_at_s + STALL_S
        for block, asked in peer.asked.items():
            if not stalled and now < asked.at_s + SLOW_S:
                break  # the rest was asked later
            want = self._wants.get(block)
            if want is not None and want.holder == peer.device:
                overdue.append(want)
        return overdue

    # --- asking ---------------------------------------------------------------------------------

    def _fill(self, now: float) -> list[Effect]:
        """Hand out open wants while peers have credit."""
        if not self._shared and not self._own:
            return []
        requests: dict[tuple[DeviceId, bool], tuple[int, list[BlockId]]] = {}
        peers = [peer for peer in self._peers.values() if not peer.slow]
        may_ask = {
            (p.device, lane is p.urgent)
            for p in peers
            for lane in (p.urgent, p.bulk)
            if lane.may_ask()
        }
        idle = [(peer.load, peer.device) for peer in peers]
        heapify(idle)
        while idle:
            _, device = heappop(idle)
            peer = self._peers[device]
            want = self._next(peer)
            if want is None or (device, want.urgent) not in may_ask:
                continue
            if not peer.lane(want).has_room(want.length):
                continue
            if (device, want.urgent) not in requests:
                self._request = self._request % REQUEST_MAX + 1
                requests[device, want.urgent] = self._request, []
            number, blocks = requests[device, want.urgent]
            blocks.append(want.block)
            self._ask(peer, want, number, now)
            heappush(idle, (peer.load, device))
        return [
            Request(device, Want(number, tuple(blocks)), urgent)
            for (device, urgent), (number, blocks) in requests.items()
        ]

    def _ask(self, peer: _Peer, want: _Wanted, request: int, now: float) -> None:
        if not peer.asked:
            peer.heard_at_s = now  # it had nothing to say until now
        lane = peer.lane(want)
        lane.blocks += 1
        lane.size += want.length
        peer.asked[want.block] = _Asked(request, want.length, now, lane)
        want.holder, want.shared = peer.device, False
        self._own.pop(want.block, None)

    def _next(self, peer: _Peer) -> _Wanted | None:
        """The first open want that this peer qualifies for; it stays in its queue."""
        shared = self._first(self._shared, shared=True)
        own = self._first(peer.queue, shared=False)
        while own is not None and not peer.qualifies(own):
            heappop(peer.queue)
            own = self._first(peer.queue, shared=False)
        if shared is None or own is None:
            return shared or own
        return min(shared, own, key=lambda want: want.key)

    def _first(self, queue: list[tuple[Key, BlockId]], *, shared: bool) -> _Wanted | None:
        """The first want that still stands where it was put; stale ones are taken out."""
        while queue:
            key, block = queue[0]
            want = self._wants.get(block)
            fits = want is not None and want.key == key and want.shared == shared
            if want is not None and fits and want.holder is None:
                return want
            heappop(queue)
        return None

    def _push(self, queue: list[tuple[Key, BlockId]], want: _Wanted) -> None:
        heappush(queue, (want.key, want.block))
        if len(queue) > 2 * len(self._wants) + HEAP_SLACK:  # mostly cancelled ones
            wants = self._wants
            alive = {(key, b) for key, b in queue if b in wants and wants[b].key == key}
            queue[:] = sorted(alive)
