"""Two ends of one connection without sockets, in virtual time: silence and farewells."""

from __future__ import annotations

import pytest

from crdt.ids import DeviceId
from transport.identity import Identity
from transport.link import KEEP_ALIVE_S, VANISHED_AFTER_S, CloseCode
from transport.quic_connection import QuicLinkConnection, State
from transport.quic_core import QuicCore, QuicOptions

ALICE = Identity.from_seed(b"A" * 32)
BOB = Identity.from_seed(b"B" * 32)
OPTIONS = QuicOptions()


def let_in(_peer: DeviceId) -> CloseCode | None:
    return None


class Wire:
    """Two ends of a connection in memory; `now` moves when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.opened_ends: list[QuicLinkConnection] = []
        client = QuicCore(ALICE, OPTIONS)
        client.connect(("bob", 1), self.now)
        server = QuicCore(BOB, OPTIONS, original_destination_connection_id=client._peer_cid.cid)
        self.ends = [self.end(client, dialled=True), self.end(server, dialled=False)]

    def end(self, core: QuicCore, *, dialled: bool) -> QuicLinkConnection:
        return QuicLinkConnection(
            core,
            self,
            dialled=dialled,
            remote=("bob" if dialled else "alice", 1),
            authorize=let_in,
            options=OPTIONS,
            now=self.now,
        )

    def flush(self, connection: QuicLinkConnection) -> None:
        pass

    def opened(self, connection: QuicLinkConnection) -> None:
        self.opened_ends.append(connection)

    def id_issued(self, connection: QuicLinkConnection, cid: bytes) -> None:
        pass

    def id_retired(self, connection: QuicLinkConnection, cid: bytes) -> None:
        pass

    def exchange(self) -> int:
        """Carry datagrams until both ends are quiet; how many there were."""
        count, quiet = 0, 0
        while quiet < 2:
            quiet += 1
            client, server = self.ends
            for end, other, name in ((client, server, "alice"), (server, client, "bob")):
                for data, _ in end.turn(self.now):
                    other.receive(data, (name, 1), self.now)
                    count, quiet = count + 1, 0
        return count

    def settle(self) -> None:
        """Until nothing is left but the timers of an idle connection."""
        for _ in range(20):
            self.exchange()
            self.advance(0.05)
        self.exchange()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for end in self.ends:
            at = end.next_timer()
            if at is not None and at <= self.now:
                end.on_timer(self.now)


def test_an_idle_connection_pings_and_lives() -> None:
    wire = Wire()
    wire.settle()
    assert wire.opened_ends == wire.ends[::-1]  # the accepting side is first
    for _ in range(10):
        wire.advance(KEEP_ALIVE_S - 2)
        assert wire.exchange() == 0
        wire.advance(2)
        wire.settle()
        assert [end.state for end in wire.ends] == [State.OPEN, State.OPEN]


def test_a_vanished_peer_is_noticed_in_time() -> None:
    wire = Wire()
    wire.settle()
    alice = wire.ends[0]
    heard = alice._heard_at
    while alice.closed is None:
        at = alice.next_timer()
        assert at is not None
        assert at <= heard + VANISHED_AFTER_S
        wire.now = at
        alice.on_timer(wire.now)
        alice.turn(wire.now)  # what it sends is lost
    assert wire.now == pytest.approx(heard + VANISHED_AFTER_S)
    assert alice.closed.code is None
    assert "nothing heard" in alice.closed.reason


def test_a_lost_farewell_is_repeated_while_the_peer_talks() -> None:
    wire = Wire()
    wire.settle()
    alice, bob = wire.ends
    alice.close_nowait(CloseCode.NOT_A_MEMBER)
    assert alice.turn(wire.now)  # lost
    bob.core.send_ping(1)
    wire.exchange()
    assert bob.closed is not None
    assert bob.closed.code is CloseCode.NOT_A_MEMBER
    assert bob.closed.by_peer


def test_whoever_opens_too_many_streams_is_closed() -> None:
    wire = Wire()
    wire.settle()
    alice, bob = wire.ends
    alice.core._remote_max_streams_bidi = 10_000
    for stream_id in range(0, 4 * 200, 4):
        alice.core.send_stream_data(stream_id, b"x", end_stream=True)
        # The peer may not make room for more by losing interest in our answer.
        alice.core.stop_stream(stream_id, 0)
    wire.settle()
    assert bob.closed is not None
    assert bob.closed.code is CloseCode.PROTOCOL_ERROR
    assert len(bob._incoming) <= 128
