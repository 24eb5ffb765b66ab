"""Fetching: every wanted block comes exactly once while somebody has it, within all bounds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from crdt.errors import PeerError
from crdt.ids import BlockId, DeviceId
from transport.fetch import (
    BULK_SIZE_MAX,
    IN_FLIGHT_MAX,
    RETRY_MAX_S,
    RETRY_MIN_S,
    SLOW_S,
    STALL_S,
    URGENT_PRIORITY,
    URGENT_SIZE_MAX,
    Deliver,
    Effect,
    Fetcher,
    PeerSlow,
    Request,
    Unavailable,
    priority_of,
)
from transport.fields import WANT_MAX
from transport.messages import Want
from transport.supply import Supplier

KIB, MIB = 1024, 1024 * 1024
PEERS = [DeviceId(bytes([i]) * 32) for i in range(1, 5)]
ONE, TWO, THREE, GOOD = PEERS
BULK = URGENT_PRIORITY + 1


def block(number: int) -> BlockId:
    return BlockId(number.to_bytes(32, "big"))


class Source:
    """A connected peer: what it holds, and what it was asked for and has not answered."""

    def __init__(self, holds: Iterable[BlockId] | None) -> None:
        self.holds = None if holds is None else set(holds)  # None: everything
        self.asked: dict[bool, deque[tuple[int, BlockId]]] = {True: deque(), False: deque()}

    def owes(self) -> list[BlockId]:
        return [one for lane in self.asked.values() for _, one in lane]


class Driver:
    """Carries out effects, and checks them."""

    def __init__(self) -> None:
        self.fetcher = Fetcher()
        self.sources: dict[DeviceId, Source] = {}
        self.wanted: dict[BlockId, int] = {}
        self.delivered: list[BlockId] = []
        self.effects: list[Effect] = []
        self.now = 0.0

    def carry(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            self.effects.append(effect)
            match effect:
                case Request(peer, want, urgent):
                    source = self.sources[peer]
                    for one in want.blocks:
                        assert one in self.wanted
                        assert one not in source.owes(), "asked twice for what it owes"
                        source.asked[urgent].append((want.request, one))
                case Deliver(one):
                    del self.wanted[one]
                    self.delivered.append(one)
                case Unavailable(one):
                    assert self.sources
                    assert one in self.wanted
                case PeerSlow(peer):
                    assert self.sources[peer].owes()

    def want(self, number: int, length: int, priority: int) -> None:
        self.wanted.setdefault(block(number), length)
        self.fetcher.want(block(number), length, priority)

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.carry(self.fetcher.tick(self.now))

    def add(self, peer: DeviceId, holds: Iterable[BlockId] | None) -> None:
        self.sources[peer] = Source(holds)
        self.carry(self.fetcher.peer_added(peer, now=self.now))

    def remove(self, peer: DeviceId) -> None:
        del self.sources[peer]
        self.carry(self.fetcher.peer_removed(peer, now=self.now))

    def answer(self, peer: DeviceId, *, urgent: bool) -> None:
        source = self.sources[peer]
        request, one = source.asked[urgent].popleft()
        if source.holds is None or one in source.holds:
            self.carry(self.fetcher.received(peer, request, one, 100, now=self.now))
        else:
            self.carry(self.fetcher.missing(peer, request, [one], now=self.now))

    def answer_all(self, *peers: DeviceId) -> None:
        for peer in peers or PEERS:
            for urgent in (True, False):
                while peer in self.sources and self.sources[peer].asked[urgent]:
                    self.answer(peer, urgent=urgent)


class Fetching(RuleBasedStateMachine):
    """Up to three peers that hold, lose, deny and delay; in the end one comes that has everything,
    or those that are there get everything.
    """

    numbers = st.integers(0, 99)
    peers = st.sampled_from(PEERS[:3])

    @initialize(newcomer=st.booleans())
    def begin(self, newcomer: bool) -> None:
        self.driver = Driver()
        self.newcomer = newcomer

    @rule(
        first=numbers,
        count=st.integers(1, 40),
        length=st.sampled_from([1, 64 * KIB, 300 * KIB, 4 * MIB]),
        priority=st.sampled_from([0, URGENT_PRIORITY, BULK, 40]),
    )
    def want(self, first: int, count: int, length: int, priority: int) -> None:
        for number in range(first, first + count):
            self.driver.want(number, length, priority)

    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        self.driver.wanted.pop(block(number), None)
        self.driver.fetcher.cancel(block(number))

    @rule(seconds=st.sampled_from([0.0, 0.5, RETRY_MIN_S, STALL_S, SLOW_S, RETRY_MAX_S]))
    def tick(self, seconds: float) -> None:
        self.driver.tick(seconds)

    @rule(peer=peers, holds=st.sets(numbers, max_size=60))
    def connect_or_lose(self, peer: DeviceId, holds: set[int]) -> None:
        if peer in self.driver.sources:
            self.driver.remove(peer)
        else:
            self.driver.add(peer, map(block, holds))

    @rule(peer=peers, urgent=st.booleans(), count=st.integers(1, 40))
    def answers(self, peer: DeviceId, urgent: bool, count: int) -> None:
        source = self.driver.sources.get(peer)
        while source and source.asked[urgent] and count:
            self.driver.answer(peer, urgent=urgent)
            count -= 1

    @rule(peer=peers, number=numbers, told=st.booleans())
    def gains(self, peer: DeviceId, number: int, told: bool) -> None:
        source = self.driver.sources.get(peer)
        if source is not None and source.holds is not None:
            source.holds.add(block(number))
            if told:
                has = self.driver.fetcher.has(peer, block(number), now=self.driver.now)
                self.driver.carry(has)

    @rule(peer=peers)
    def trickle(self, peer: DeviceId) -> None:
        if peer in self.driver.sources:
            self.driver.fetcher.heard(peer, now=self.driver.now)

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "driver"):
            return
        statistics = self.driver.fetcher.statistics()
        sources = self.driver.sources.values()
        assert statistics.wanted == len(self.driver.wanted)
        assert statistics.delivered == len(self.driver.delivered)
        assert statistics.in_flight == sum(len(source.owes()) for source in sources)
        for peer in self.driver.fetcher._peers.values():
            assert peer.bulk.blocks <= IN_FLIGHT_MAX
            assert peer.urgent.blocks <= IN_FLIGHT_MAX
            assert peer.bulk.size <= BULK_SIZE_MAX
            assert peer.urgent.size <= URGENT_SIZE_MAX or peer.urgent.blocks == 1

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        driver = self.driver
        helpful = [GOOD] if self.newcomer or not driver.sources else list(driver.sources)
        if GOOD in helpful:
            driver.add(GOOD, None)
        for source in driver.sources.values():
            source.holds = None
        for _ in range(200):
            driver.answer_all(*helpful)  # others say nothing any more
            driver.tick(STALL_S)
        assert not driver.wanted
        assert not driver.fetcher._own
        assert not any(peer.lacking for peer in driver.fetcher._peers.values())
        driver.answer_all()
        assert driver.fetcher.statistics().in_flight == 0
        assert driver.fetcher.next_tick() is None or not driver.fetcher._wants


TestFetching = pytest.mark.slow(Fetching.TestCase)
TestFetching.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def requests(driver: Driver) -> list[Request]:
    return [effect for effect in driver.effects if isinstance(effect, Request)]


def test_many_wants_become_one_request_shared_by_all_peers() -> None:
    driver = Driver()
    for peer in PEERS[:2]:
        driver.add(peer, None)
    for number in range(10):
        driver.want(number, 64 * KIB, BULK)
    assert requests(driver) == []
    driver.tick()
    assert [(len(r.want.blocks), r.urgent) for r in requests(driver)] == [(5, False)] * 2
    driver.answer_all()
    assert sorted(driver.delivered) == [block(number) for number in range(10)]


def test_bulk_is_asked_for_again_when_half_of_the_credit_is_back() -> None:
    driver = Driver()
    driver.add(ONE, None)
    for number in range(3 * IN_FLIGHT_MAX):
        driver.want(number, KIB, BULK)
    driver.tick()
    for _ in range(IN_FLIGHT_MAX):
        driver.answer(ONE, urgent=False)
    sizes = [len(request.want.blocks) for request in requests(driver)]
    assert sizes == [IN_FLIGHT_MAX, IN_FLIGHT_MAX // 2, IN_FLIGHT_MAX // 2]


def test_the_small_overtake_the_large() -> None:
    driver = Driver()
    driver.add(ONE, None)
    for number in range(100):
        driver.want(number, MIB, priority_of(10**9))
    driver.tick()
    assert len(driver.sources[ONE].owes()) == BULK_SIZE_MAX // MIB
    driver.want(500, 10, priority_of(10))
    driver.want(501, 10, priority_of(2 * MIB))
    driver.tick()
    assert requests(driver)[-1].urgent
    assert requests(driver)[-1].want.blocks == (block(500),)
    driver.answer_all()
    assert driver.delivered.index(block(501)) <= BULK_SIZE_MAX // MIB + 1


def test_a_want_can_become_more_urgent() -> None:
    driver = Driver()
    for number in range(3):
        driver.want(number, 10, BULK)
    driver.want(2, 10, 0)
    driver.want(2, 10, BULK)
    driver.add(ONE, None)
    assert [request.want.blocks for request in requests(driver) if request.urgent] == [(block(2),)]


def test_rank_orders_blocks_of_one_priority() -> None:
    fetcher = Fetcher(rank=lambda one: -one[-1])
    for number in range(5):
        fetcher.want(block(number), 10, BULK)
    (request,) = fetcher.peer_added(ONE, now=0)
    assert isinstance(request, Request)
    assert request.want.blocks == tuple(block(number) for number in (4, 3, 2, 1, 0))


def test_a_block_larger_than_the_credit_goes_alone() -> None:
    driver = Driver()
    for number in range(3):
        driver.want(number, 4 * MIB, 0)
    driver.add(ONE, None)
    assert len(driver.sources[ONE].owes()) == 1
    driver.answer_all()
    assert len(driver.delivered) == 3


def test_nobody_has_it_until_somebody_does() -> None:
    driver = Driver()
    driver.want(1, 10, BULK)
    driver.tick()
    assert driver.effects == [], "nobody to ask is no news"
    driver.add(ONE, [])
    driver.answer_all()
    assert driver.effects[-1] == Unavailable(block(1))
    assert driver.fetcher.statistics().unavailable == 1
    pauses = []
    for _ in range(9):
        due = driver.fetcher.next_tick()
        assert due is not None
        pauses.append(due - driver.now)
        driver.tick(due - driver.now)
        driver.answer_all()
    assert pauses == [min(RETRY_MIN_S * 2**i, RETRY_MAX_S) for i in range(9)]
    driver.add(TWO, [block(1)])
    driver.answer_all()
    assert driver.delivered == [block(1)]


def test_a_peer_that_is_heard_to_have_it_is_asked_again() -> None:
    driver = Driver()
    driver.add(ONE, [])
    driver.want(1, 10, BULK)
    driver.tick()
    driver.answer_all()
    sources = driver.sources[ONE]
    sources.holds = None
    driver.carry(driver.fetcher.has(ONE, block(1), now=0))
    driver.answer_all()
    assert driver.delivered == [block(1)]


def test_a_stalled_peer_is_replaced_and_may_still_answer() -> None:
    driver = Driver()
    driver.add(ONE, None)
    driver.want(1, 10, BULK)
    driver.want(2, 10, BULK)
    driver.tick()
    driver.add(TWO, None)
    assert driver.fetcher.next_tick() == STALL_S
    driver.tick(STALL_S)
    assert PeerSlow(ONE) in driver.effects
    assert driver.sources[TWO].owes() == [block(1), block(2)]
    driver.answer(ONE, urgent=False)
    assert driver.delivered == [block(1)], "late is as good"
    driver.answer_all()
    assert driver.delivered == [block(1), block(2)]
    assert driver.fetcher.statistics().in_vain == 2
    assert driver.effects.count(PeerSlow(ONE)) == 1


def test_a_peer_is_never_asked_again_for_what_it_owes() -> None:
    driver = Driver()
    driver.add(ONE, None)
    for number in range(3):
        driver.want(number, 10, BULK)
    driver.tick()
    driver.tick(STALL_S)
    driver.answer(ONE, urgent=False)
    driver.tick()
    assert len(requests(driver)) == 1
    assert driver.sources[ONE].owes() == [block(1), block(2)]
    driver.add(TWO, [])
    driver.answer_all(TWO)
    assert Unavailable(block(1)) not in driver.effects, "one still owes it"
    driver.remove(ONE)
    assert driver.effects[-2:] == [Unavailable(block(1)), Unavailable(block(2))]


def test_bytes_keep_a_slow_peer_in_charge_but_not_for_ever() -> None:
    driver = Driver()
    driver.add(ONE, None)
    driver.want(1, 4 * MIB, BULK)
    driver.tick()
    driver.add(TWO, None)
    while driver.now < SLOW_S - STALL_S:
        driver.fetcher.heard(ONE, now=driver.now)
        driver.tick(STALL_S / 2)
        assert driver.sources[TWO].owes() == []
    driver.fetcher.heard(ONE, now=driver.now)
    driver.tick(STALL_S)
    assert driver.sources[TWO].owes() == [block(1)]


def test_a_cancelled_block_that_is_wanted_again_is_not_asked_for_twice() -> None:
    driver = Driver()
    driver.add(ONE, None)
    driver.want(1, 10, BULK)
    driver.tick()
    driver.fetcher.cancel(block(1))
    driver.want(1, 10, BULK)
    driver.tick()
    assert len(requests(driver)) == 1
    driver.answer_all()
    assert driver.delivered == [block(1)]


def test_what_nobody_asked_for_is_the_peers_fault() -> None:
    driver = Driver()
    driver.add(ONE, None)
    driver.add(TWO, None)
    driver.want(1, 10, BULK)
    driver.tick()
    (request,) = requests(driver)
    other = TWO if request.peer == ONE else ONE
    number = request.want.request
    for peer, answered, one in (
        (other, number, block(1)),
        (request.peer, number + 1, block(1)),
        (request.peer, number, block(2)),
    ):
        with pytest.raises(PeerError, match="not asked for"):
            driver.fetcher.received(peer, answered, one, 10, now=0)
        with pytest.raises(PeerError, match="not asked for"):
            driver.fetcher.missing(peer, answered, [one], now=0)
    driver.answer_all()
    with pytest.raises(PeerError, match="not asked for"):
        driver.fetcher.received(request.peer, number, block(1), 10, now=0)


def test_stale_elements_do_not_pile_up() -> None:
    fetcher = Fetcher()
    for number in range(10_000):
        fetcher.want(block(number), 10, BULK)
        fetcher.cancel(block(number))
    assert len(fetcher._shared) < 2000


@pytest.mark.slow
def test_a_hundred_thousand_wants_cost_little_each() -> None:
    """Where half of the peers deny everything, too."""
    driver, count = Driver(), 100_000
    blocks = [block(number) for number in range(count)]
    begin = time.perf_counter()
    for one in blocks:
        driver.fetcher.want(one, 64 * KIB, BULK)
    queue = deque(driver.fetcher.peer_added(ONE, now=0))
    queue += driver.fetcher.peer_added(TWO, now=0)
    left = count
    while left:
        effect = queue.popleft()
        if isinstance(effect, Deliver):
            left -= 1
        elif isinstance(effect, Request):
            want = effect.want
            if effect.peer == ONE:
                queue += driver.fetcher.missing(ONE, want.request, want.blocks, now=0)
            else:
                for one in want.blocks:
                    queue += driver.fetcher.received(TWO, want.request, one, 10, now=0)
    assert time.perf_counter() - begin < 20, "about 1.5 s on the machine this was written on"


def test_a_supplier_answers_in_order_and_holds_the_peer_to_its_credit() -> None:
    supplier = Supplier()
    assert supplier.next() is None
    supplier.wanted(Want(1, (block(1), block(2))))
    supplier.wanted(Want(2, tuple(block(i) for i in range(WANT_MAX - 2))))
    assert supplier.next() == (1, block(1))
    with pytest.raises(PeerError, match="more than"):
        supplier.wanted(Want(3, (block(3),)))
    supplier.answered()
    assert supplier.next() == (1, block(2))
    supplier.wanted(Want(3, (block(3),)))


def test_what_only_the_lost_peer_was_left_for_is_asked_again() -> None:
    """TWO has no credit when ONE says that it lacks block 0, and goes: ONE may have it later."""
    driver = Driver()
    driver.add(ONE, [])
    for number in range(2 * IN_FLIGHT_MAX):
        driver.want(number, 1, BULK)
    driver.add(TWO, [])
    driver.tick()
    driver.answer(ONE, urgent=False)
    driver.remove(TWO)
    driver.sources[ONE].holds = None
    for _ in range(10):
        driver.answer_all()
        driver.tick(10.0)
    assert not driver.fetcher.statistics().wanted


def test_a_reserve_is_asked_where_others_are_busy_or_have_nothing() -> None:
    driver = Driver()
    driver.sources[ONE] = Source(None)
    driver.carry(driver.fetcher.peer_added(ONE, now=0.0, reserve=True))
    driver.add(TWO, None)
    for number in range(4):
        driver.want(number, 1024 * 1024, BULK)
    driver.tick()
    assert [len(driver.sources[peer].asked[False]) for peer in (ONE, TWO)] == [0, 4]
    for number in range(4, 8):
        driver.want(number, 1024 * 1024, BULK)
    driver.tick()
    assert driver.sources[ONE].asked[False], "the other one is busy"
    driver.answer_all()
    assert len(driver.delivered) == 8


def test_what_was_useless_is_asked_of_others() -> None:
    fetcher = Fetcher()
    fetcher.want(block(1), 10, 0)
    (request,) = fetcher.peer_added(ONE, now=0.0)
    assert isinstance(request, Request)
    fetcher.received(ONE, request.want.request, block(1), 10, now=0.0)
    assert fetcher.useless(ONE, block(1), 10, 0, now=0.0) == [Unavailable(block(1))]
    (request,) = fetcher.peer_added(TWO, now=0.0)
    assert isinstance(request, Request)
    assert (request.peer, request.want.blocks) == (TWO, (block(1),))
