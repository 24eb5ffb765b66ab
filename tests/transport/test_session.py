"""Control streams: two sessions over simulated logs converge, whatever happens in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from crdt.entry import ENTRY_SIZE_MAX
from crdt.errors import PeerError
from crdt.ids import DeviceId, FolderId
from crdt.version_vector import EMPTY, VersionVector
from transport.messages import Ack, Bye, Entries, Have, Hello, Message
from transport.session import (
    PUSH_SIZE_MAX,
    RETRY_MAX_S,
    RETRY_MIN_S,
    WINDOW_SIZE,
    Deliver,
    Diverged,
    Effect,
    Ended,
    FolderSession,
    LogEntry,
    PeerState,
    Push,
    Send,
    SessionState,
)

FOLDER = FolderId(b"f" * 32)
DEVICES = [DeviceId(letter * 32) for letter in (b"A", b"B", b"C")]
A, B, C = DEVICES
SIZES = [10, 300_000, 3_000_000]
_PADDING = bytes(max(SIZES))


def entry(device: DeviceId, seq: int, fork: bytes = b"") -> bytes:
    return device[:1] + b"%d " % seq + fork + _PADDING[: SIZES[seq % len(SIZES)]]


def head(data: bytes) -> bytes:
    return data[:32].ljust(32, b"\0")


class Node:
    """A log, one session, and a driver that carries out effects; intake comes later."""

    def __init__(self, device: DeviceId) -> None:
        self.device = device
        self.log: list[LogEntry] = []
        self.complete = EMPTY
        self.from_peer: set[bytes] = set()
        self.diverged: list[Diverged] = []
        self.ended: list[Ended] = []
        self.connect()

    def connect(self) -> None:
        self.inbox: deque[bytes] = deque()
        self.sent: deque[Message] = deque()
        self.session = FolderSession(FOLDER, name="node", agent="test", known_hash=self.known_hash)

    @property
    def have(self) -> VersionVector:
        return VersionVector({one.device: one.seq for one in self.log})

    @property
    def heads(self) -> dict[DeviceId, bytes]:
        return {one.device: head(one.entry) for one in self.log}

    def known_hash(self, device: DeviceId, seq: int) -> bytes | None:
        found = (one for one in self.log if (one.device, one.seq) == (device, seq))
        return next((head(one.entry) for one in found), None)

    def start(self) -> None:
        self.carry(self.session.start(self.have, self.complete, self.heads))

    def append(self, device: DeviceId, fork: bytes = b"") -> None:
        seq = self.have[device] + 1
        self.log.append(LogEntry(device, seq, entry(device, seq, fork)))

    def advanced(self, settled: int = 0) -> None:
        if self.session.state is not SessionState.NEW:
            self.carry(self.session.advanced(self.have, self.complete, self.heads, settled=settled))

    def missing_from(self, after: VersionVector, size_max: int) -> list[LogEntry]:
        rows: list[LogEntry] = []
        for one in self.log:
            if not after.covers(one.device, one.seq):
                if rows and sum(len(row.entry) for row in rows) + len(one.entry) > size_max:
                    break
                rows.append(one)
        return rows

    def carry(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message):
                    self.sent.append(message)
                case Push(after, size_max):
                    assert size_max <= PUSH_SIZE_MAX
                    rows = self.missing_from(after, size_max)
                    assert rows
                    flying = {flight[:2] for flight in self.session._outgoing.positions}
                    for row in rows:
                        assert (row.device, row.seq) not in flying, "that is on its way"
                        acknowledged = self.session.peer_have.covers(row.device, row.seq)
                        assert not acknowledged, "the peer has that"
                        assert row.entry not in self.from_peer, "an echo"
                    self.carry(self.session.send_entries(rows))
                case Deliver(entries):
                    self.inbox += entries
                case PeerState(have, complete):
                    assert have == self.session.peer_have
                    assert complete == self.session.peer_complete
                case Diverged():
                    self.diverged.append(effect)
                case Ended():
                    self.ended.append(effect)

    def intake(self, count: int, *, drop: bool = False) -> None:
        settled = min(count, len(self.inbox))
        for _ in range(settled):
            data = self.inbox.popleft()
            device, seq = DeviceId(data[:1] * 32), int(data[1:12].split()[0])
            if not drop and seq == self.have[device] + 1:
                self.log.append(LogEntry(device, seq, data))
                self.from_peer.add(data)
        self.advanced(settled)


def deliver(sender: Node, receiver: Node, now: float) -> None:
    receiver.carry(receiver.session.receive(sender.sent.popleft(), now=now))


def settle(one: Node, two: Node, now: float) -> float:
    """Let everything arrive and every retry happen."""
    for _ in range(100):
        for sender, receiver in ((one, two), (two, one)):
            while sender.sent and receiver.session.state is not SessionState.NEW:
                deliver(sender, receiver, now)
            receiver.intake(len(receiver.inbox))
        ticks = [node.session.next_tick() for node in (one, two)]
        if not (one.sent or two.sent or one.inbox or two.inbox) and ticks == [None, None]:
            return now
        now += RETRY_MAX_S
        for node in (one, two):
            node.carry(node.session.tick(now))
    raise AssertionError("they never come to rest")


class Sessions(RuleBasedStateMachine):
    """Two nodes, A and B; entries of C reach both from elsewhere."""

    sides = st.sampled_from([0, 1])

    @initialize()
    def begin(self) -> None:
        self.nodes = (Node(A), Node(B))
        self.now = 0.0

    @rule(side=sides)
    def start(self, side: int) -> None:
        if self.nodes[side].session.state is SessionState.NEW:
            self.nodes[side].start()

    @rule(side=sides, count=st.integers(1, 4))
    def write(self, side: int, count: int) -> None:
        node = self.nodes[side]
        for _ in range(count):
            node.append(node.device)
        node.advanced()

    @rule(side=sides)
    def hear_from_elsewhere(self, side: int) -> None:
        self.nodes[side].append(C)
        self.nodes[side].advanced()

    @rule(side=sides)
    def content_arrives(self, side: int) -> None:
        self.nodes[side].complete = self.nodes[side].have
        self.nodes[side].advanced()

    @rule(side=sides, count=st.integers(1, 5))
    def arrive(self, side: int, count: int) -> None:
        sender, receiver = self.nodes[side], self.nodes[1 - side]
        if receiver.session.state is not SessionState.NEW:
            for _ in range(min(count, len(sender.sent))):
                deliver(sender, receiver, self.now)

    @rule(side=sides, count=st.integers(1, 9))
    def take_in(self, side: int, count: int) -> None:
        self.nodes[side].intake(count)

    @precondition(lambda self: any(node.inbox for node in self.nodes))
    @rule(side=sides)
    def drop(self, side: int) -> None:
        self.nodes[side].intake(1, drop=True)

    @rule(seconds=st.sampled_from([1.0, RETRY_MIN_S, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for node in self.nodes:
            node.carry(node.session.tick(self.now))

    @rule()
    def reconnect(self) -> None:
        for node in self.nodes:
            node.connect()

    @invariant()
    def windows_hold(self) -> None:
        for node in getattr(self, "nodes", ()):
            unsettled = node.session.statistics().unsettled_bytes
            assert unsettled <= WINDOW_SIZE + ENTRY_SIZE_MAX

    def teardown(self) -> None:
        if not hasattr(self, "nodes"):
            return
        one, two = self.nodes
        for node in self.nodes:
            if node.session.state is SessionState.NEW:
                node.start()
        self.now = settle(one, two, self.now)
        assert {row.entry for row in one.log} == {row.entry for row in two.log}
        for node, other in ((one, two), (two, one)):
            assert node.session.peer_have == other.have
            assert node.session.peer_complete == other.complete
            assert node.session.wanted_ranges() == []
            statistics = node.session.statistics()
            assert (statistics.unsettled_entries, statistics.unsettled_bytes) == (0, 0)
            assert statistics.dropped_devices == 0
            assert not node.diverged


TestSessions = pytest.mark.slow(Sessions.TestCase)
TestSessions.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def pair() -> tuple[Node, Node]:
    return Node(A), Node(B)


def opened(one: Node, two: Node) -> tuple[Node, Node]:
    one.start()
    two.start()
    settle(one, two, 0.0)
    return one, two


def test_an_entry_is_pushed_at_once_and_acknowledged_once() -> None:
    one, two = opened(*pair())
    one.append(A)
    one.advanced()
    ack, entries = one.sent
    assert ack == Ack(VersionVector({A: 1}), EMPTY, {A: head(entry(A, 1))})
    assert entries == Entries((entry(A, 1),))
    deliver(one, two, 0)
    deliver(one, two, 0)
    two.intake(1)
    answer = Ack(VersionVector({A: 1}), EMPTY, {A: head(entry(A, 1))}, settled=1)
    assert list(two.sent) == [answer], "acknowledged, and not echoed"
    two.advanced()
    assert len(two.sent) == 1, "nothing new, nothing sent"


def test_ranges_and_completeness() -> None:
    one, two = pair()
    for _ in range(3):
        one.append(A)
    two.append(C)
    one.start()
    two.start()
    deliver(two, one, 0)
    assert one.session.peer is not None
    assert one.session.peer.name == "node"
    assert one.session.wanted_ranges() == [(A, 1, 3)]
    settle(one, two, 0)
    assert one.session.wanted_ranges() == []
    two.complete = two.have
    two.advanced()
    assert list(two.sent) == [Ack(EMPTY, VersionVector({A: 3, C: 1}), {})]
    settle(one, two, 0)
    assert one.session.peer_complete == one.have


def test_what_is_dropped_is_offered_again_ever_more_rarely() -> None:
    one, two = opened(*pair())
    one.append(A)
    one.advanced()
    now, pauses = 0.0, []
    for _ in range(12):
        while one.sent:
            deliver(one, two, now)
        two.append(B)
        two.advanced()  # news from the peer, while the entry is on its way, changes no pause
        two.intake(9, drop=True)
        while two.sent:
            deliver(two, one, now)
        due = one.session.next_tick()
        assert due is not None
        assert one.session.tick(due - 0.1) == []
        pauses.append(due - now)
        now = due
        one.carry(one.session.tick(now))
    assert pauses == [min(RETRY_MIN_S * 2**i, RETRY_MAX_S) for i in range(12)]
    settle(one, two, now)
    assert two.have == one.have
    assert one.session.next_tick() is None


def test_what_is_on_its_way_is_not_offered_again_with_the_dropped() -> None:
    one, two = opened(*pair())
    one.append(A)
    one.advanced()
    while one.sent:
        deliver(one, two, 0)
    two.intake(1, drop=True)
    while two.sent:
        deliver(two, one, 0)
    one.append(C)
    one.advanced()
    one.carry(one.session.tick(RETRY_MIN_S))
    pushed = [message for message in one.sent if isinstance(message, Entries)]
    assert pushed == [Entries((entry(C, 1),)), Entries((entry(A, 1),))]


@pytest.mark.parametrize("lead", [0, 2])
def test_a_fork_is_found_and_not_pushed(lead: int) -> None:
    one, two = pair()
    one.append(C)
    two.append(C, b"other ")
    for _ in range(lead):
        one.append(C)
    opened(one, two)
    assert one.diverged == [Diverged(C, 1, head(entry(C, 1, b"other ")))]
    assert one.session.statistics().sent_entries == 0
    if lead == 0:
        assert two.diverged == [Diverged(C, 1, head(entry(C, 1)))]
    one.append(A)
    one.append(C)
    one.advanced()
    settle(one, two, 0)
    assert two.have[A] == 1, "others' entries still go across"
    assert two.have[C] == 1
    one.carry(one.session.send_evidence(entry(C, 1)))
    assert list(one.sent) == [Entries((entry(C, 1),))]
    settle(one, two, 0)
    assert len(one.diverged) == 1


def test_a_fork_is_found_later_too() -> None:
    one, two = opened(*pair())
    one.append(C)
    two.append(C, b"other ")
    one.advanced()
    two.advanced()
    settle(one, two, 0)
    assert one.diverged
    assert two.diverged


HELLO = Hello(FOLDER, "x", "y")
HAVE = Have(EMPTY, EMPTY, {})
ACK = Ack(EMPTY, EMPTY, {})


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([HAVE], "out of turn"),
        ([Hello(FolderId(b"g" * 32), "x", "y")], "another folder"),
        ([HELLO, HELLO], "out of turn"),
        ([HELLO, ACK], "out of turn"),
        ([HELLO, Entries((b"e",))], "out of turn"),
        ([HELLO, HAVE, HAVE], "out of turn"),
        ([HELLO, HAVE, HELLO], "out of turn"),
        ([HELLO, HAVE, Ack(EMPTY, EMPTY, {}, settled=1)], "more than were sent"),
        ([HELLO, HAVE, *[Entries((bytes(1024 * 1024),))] * 13], "window"),
        ([HELLO, HAVE, *[Entries((b"e",) * 1024)] * 6], "window"),
        (
            [
                HELLO,
                HAVE,
                *(
                    Ack(
                        VersionVector({DeviceId(i.to_bytes(32, "big")): 1 for i in devices}),
                        EMPTY,
                        {},
                    )
                    for devices in (range(1, 1000), range(1000, 1100))
                ),
            ],
            "impossible",
        ),
    ],
)
def test_what_breaks_the_rules(messages: list[Message], complaint: str) -> None:
    node = Node(A)
    node.start()
    for message in messages[:-1]:
        node.carry(node.session.receive(message, now=0))
    with pytest.raises(PeerError, match=complaint):
        node.session.receive(messages[-1], now=0)
    assert node.session.state is SessionState.CLOSED
    assert node.session.receive(HELLO, now=0) == []
    assert node.session.advanced(EMPTY, EMPTY, {}) == []
    assert node.session.bye(0) == []


def test_bye() -> None:
    one, two = opened(*pair())
    one.carry(one.session.bye(7, "going\ndown"))
    assert list(one.sent) == [Bye(7, "going down")]
    deliver(one, two, 0)
    assert two.ended == [Ended(7, "going down")]
    assert two.session.state is SessionState.CLOSED
    two.append(B)
    two.advanced()
    assert not two.sent
    assert Node(A).session.bye(0) == [], "nothing was said yet"


def test_a_shorter_log_than_told_ends_the_push() -> None:
    one, two = opened(*pair())
    effects = one.session.advanced(VersionVector({A: 1}), EMPTY, {A: head(b"")})
    assert effects[1:] == [Push(EMPTY, PUSH_SIZE_MAX)]
    assert one.session.send_entries([]) == []
    assert two.session.next_tick() is None
