"""What every Link must do: QUIC over real loopback sockets (IPv4, IPv6), and memory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from crdt.errors import WorldError
from crdt.ids import DeviceId
from transport.address import Address
from transport.identity import Identity
from transport.link import (
    STREAMS_MAX,
    CloseCode,
    Closed,
    Connection,
    DialError,
    Link,
    LinkClosedError,
    Stream,
)
from transport.memory import MemoryNetwork
from transport.quic import QuicLink

ALICE = Identity.from_seed(b"A" * 32)
BOB = Identity.from_seed(b"B" * 32)
QUIET_S = 0.1  # nothing has happened for so long: whoever can go on has gone on


def let_in(_peer: DeviceId) -> CloseCode | None:
    return None


@dataclass
class Node:
    """A served link; accepted connections stay open and are put where the test finds them."""

    link: Link
    nursery: trio.Nursery
    verdict: CloseCode | None = None
    asked: list[DeviceId] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.send, self.accepted = trio.open_memory_channel[Connection](100)

    def authorize(self, peer: DeviceId) -> CloseCode | None:
        self.asked.append(peer)
        return self.verdict

    async def handle(self, connection: Connection) -> None:
        self.send.send_nowait(connection)
        await connection.wait_closed()

    @property
    def address(self) -> Address:
        assert self.link.address is not None
        return self.link.address

    async def start(self) -> None:
        await self.nursery.start(self.link.serve, self.authorize, self.handle)

    async def dial(self, other: Node) -> tuple[Connection, Connection]:
        connection = await self.link.dial(other.address, authorize=let_in)
        return connection, await other.accepted.receive()


MakeLink = Callable[[Identity], Link]


@pytest.fixture(params=["quic", "quic over IPv6", "memory", "memory with delay"])
def make_link(request: pytest.FixtureRequest) -> MakeLink:
    if request.param == "quic":
        return lambda identity: QuicLink(identity, Address("127.0.0.1", 0))
    if request.param == "quic over IPv6":
        return lambda identity: QuicLink(identity, Address("::1", 0))
    network = MemoryNetwork(delay_s=0.001 if "delay" in request.param else 0.0)
    return network.link


@pytest.fixture
async def nursery() -> AsyncIterator[trio.Nursery]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()


@pytest.fixture
async def alice(make_link: MakeLink, nursery: trio.Nursery) -> Node:
    node = Node(make_link(ALICE), nursery)
    await node.start()
    return node


@pytest.fixture
async def bob(make_link: MakeLink, nursery: trio.Nursery) -> Node:
    node = Node(make_link(BOB), nursery)
    await node.start()
    return node


async def streams(alice: Node, bob: Node) -> tuple[Stream, Stream]:
    ours, theirs = await alice.dial(bob)
    stream = await ours.open_stream()
    await stream.send_all(b"!")
    other = await theirs.accept_stream()
    assert await other.receive_some() == b"!"
    return stream, other


async def read_all(stream: Stream) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some():
        data += piece
    return bytes(data)


async def test_both_sides_know_the_others_key(alice: Node, bob: Node) -> None:
    ours, theirs = await alice.dial(bob)
    assert (ours.peer, theirs.peer) == (BOB.device, ALICE.device)
    assert (ours.dialled, theirs.dialled) == (True, False)
    assert (ours.address, theirs.address) == (bob.address, alice.address)
    assert bob.asked == [ALICE.device]


async def test_a_joining_device_shows_the_invitations_key(alice: Node, bob: Node) -> None:
    invitation = Identity.from_seed(b"I" * 32)
    await alice.link.dial(bob.address, identity=invitation, authorize=let_in)
    assert (await bob.accepted.receive()).peer == invitation.device


async def test_a_refused_dialler_learns_why_and_gets_no_connection(alice: Node, bob: Node) -> None:
    bob.verdict = CloseCode.NOT_A_MEMBER
    with pytest.raises(DialError) as refused:
        await alice.link.dial(bob.address, authorize=let_in)
    assert refused.value.code is CloseCode.NOT_A_MEMBER
    with pytest.raises(trio.WouldBlock):
        bob.accepted.receive_nowait()
    bob.verdict = None
    await alice.dial(bob)


async def test_the_dialler_may_refuse_too(alice: Node, bob: Node) -> None:
    seen = []

    def refuse(peer: DeviceId) -> CloseCode | None:
        seen.append(peer)
        return CloseCode.WRONG_KEY

    with pytest.raises(DialError) as refused:
        await alice.link.dial(bob.address, authorize=refuse)
    assert refused.value.code is CloseCode.WRONG_KEY
    assert seen == [BOB.device]
    with pytest.raises(trio.WouldBlock):
        bob.accepted.receive_nowait()


async def test_both_may_dial_at_once(alice: Node, bob: Node, nursery: trio.Nursery) -> None:
    async with trio.open_nursery() as both:
        both.start_soon(alice.dial, bob)
        both.start_soon(bob.dial, alice)


@pytest.mark.slow
async def test_bytes_arrive_in_order_in_both_directions(alice: Node, bob: Node) -> None:
    stream, other = await streams(alice, bob)
    data = {one: hashlib.shake_256(one.encode()).digest(3_000_000) for one in "ab"}
    got: dict[str, bytes] = {}

    async def send(stream: Stream, which: str) -> None:
        await stream.send_all(data[which])
        await stream.send_eof()

    async def receive(stream: Stream, which: str) -> None:
        got[which] = await read_all(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, stream, "a")
        nursery.start_soon(send, other, "b")
        nursery.start_soon(receive, other, "a")
        nursery.start_soon(receive, stream, "b")
    assert got == data


async def test_one_direction_ends_and_the_other_goes_on(alice: Node, bob: Node) -> None:
    stream, other = await streams(alice, bob)
    await stream.send_all(b"question")
    await stream.send_eof()
    assert await read_all(other) == b"question"
    assert await other.receive_some() == b""
    await other.send_all(b"answer")
    await other.send_eof()
    assert await read_all(stream) == b"answer"
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"more")


@pytest.mark.slow
async def test_a_slow_receiver_holds_the_sender_up(alice: Node, bob: Node) -> None:
    stream, other = await streams(alice, bob)
    piece, sent = bytes(256 * 1024), 0

    async def send() -> None:
        nonlocal sent
        while sent < 48 * 2**20:
            await stream.send_all(piece)
            sent += len(piece)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(QUIET_S)
        assert sent < 6 * 2**20  # a stream's window and send buffer
        assert len(await read_all(other)) == 48 * 2**20


@pytest.mark.slow
async def test_a_stuck_stream_does_not_hold_others_up(alice: Node, bob: Node) -> None:
    ours, theirs = await alice.dial(bob)
    stuck, live = await ours.open_stream(), await ours.open_stream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stuck.send_all, bytes(8 * 2**20))
        await trio.testing.wait_all_tasks_blocked(QUIET_S)
        await live.send_all(b"quick")
        await theirs.accept_stream()
        assert await (await theirs.accept_stream()).receive_some() == b"quick"
        nursery.cancel_scope.cancel()


async def test_closing_tells_the_peer_why(alice: Node, bob: Node) -> None:
    ours, theirs = await alice.dial(bob)
    stream = await theirs.open_stream()
    async with trio.open_nursery() as nursery:

        async def blocked() -> None:
            with pytest.raises(LinkClosedError) as closed:
                await stream.receive_some()
            assert closed.value.closed.code is CloseCode.DUPLICATE

        nursery.start_soon(blocked)
        await ours.close(CloseCode.DUPLICATE, "two are one too many")
        await ours.close(CloseCode.INTERNAL, "the first one counts")
        assert await theirs.wait_closed() == Closed(
            CloseCode.DUPLICATE, "two are one too many", by_peer=True
        )
    assert await ours.wait_closed() == Closed(
        CloseCode.DUPLICATE, "two are one too many", by_peer=False
    )
    for connection in (ours, theirs):
        with pytest.raises(LinkClosedError):
            await connection.open_stream()
        with pytest.raises(LinkClosedError):
            await connection.accept_stream()
    with pytest.raises(LinkClosedError):
        await stream.send_all(b"too late")
    await stream.aclose()


async def test_giving_up_a_stream_leaves_the_connection(alice: Node, bob: Node) -> None:
    ours, theirs = await alice.dial(bob)
    stream = await ours.open_stream()
    await stream.send_all(b"!")
    other = await theirs.accept_stream()
    await stream.aclose()
    await stream.aclose()
    await trio.testing.wait_all_tasks_blocked(0.01)  # what was sent may be read, or be lost
    with pytest.raises(LinkClosedError):
        await read_all(other)
    with pytest.raises(LinkClosedError):
        await other.send_all(b"who would read it")
    with pytest.raises(LinkClosedError):
        await stream.receive_some()
    await other.aclose()
    again = await theirs.open_stream()
    await again.send_all(b"still here")
    assert await (await ours.accept_stream()).receive_some() == b"still here"


async def test_a_stream_given_up_before_its_first_byte_is_not_shown(alice: Node, bob: Node) -> None:
    ours, theirs = await alice.dial(bob)
    await (await ours.open_stream()).aclose()
    second = await ours.open_stream()
    await second.send_all(b"second")
    assert await (await theirs.accept_stream()).receive_some() == b"second"


@pytest.mark.slow
async def test_streams_are_limited_but_not_in_number_over_time(alice: Node, bob: Node) -> None:
    ours, theirs = await alice.dial(bob)
    held = [await ours.open_stream() for _ in range(STREAMS_MAX)]
    for stream in held:
        await stream.send_all(b"x")
        await stream.send_eof()
    with trio.move_on_after(QUIET_S) as waiting:
        await ours.open_stream()
    assert waiting.cancelled_caught
    for _ in held:
        other = await theirs.accept_stream()
        assert await read_all(other) == b"x"
        await other.send_eof()
    for stream in held:
        assert await read_all(stream) == b""
    for index in range(STREAMS_MAX):
        stream = await ours.open_stream()
        await stream.send_all(str(index).encode())
        await stream.send_eof()
        other = await theirs.accept_stream()
        assert await read_all(other) == str(index).encode()
        await other.aclose()


async def test_a_handler_that_returns_or_fails_ends_its_connection_only(
    make_link: MakeLink, alice: Node, nursery: trio.Nursery
) -> None:
    link = make_link(BOB)

    async def handle(connection: Connection) -> None:
        stream = await connection.accept_stream()
        if await stream.receive_some() == b"fail":
            raise ValueError("a bug")

    await nursery.start(link.serve, let_in, handle)
    assert link.address is not None
    for word, code in ((b"fail", CloseCode.INTERNAL), (b"work", CloseCode.OK)):
        connection = await alice.link.dial(link.address, authorize=let_in)
        stream = await connection.open_stream()
        await stream.send_all(word)
        assert (await connection.wait_closed()).code is code


async def test_shutting_down_says_so_to_everybody(
    make_link: MakeLink, alice: Node, nursery: trio.Nursery
) -> None:
    bob = Node(make_link(BOB), nursery)
    async with trio.open_nursery() as own:
        bob.nursery = own
        await bob.start()
        one, _ = await alice.dial(bob)
        two, _ = await bob.dial(alice)
        await bob.link.aclose()
    assert (await one.wait_closed()).code is CloseCode.SHUTTING_DOWN
    assert (await two.wait_closed()).code is CloseCode.SHUTTING_DOWN
    await bob.link.aclose()
    with pytest.raises(DialError) as failed:
        await bob.link.dial(alice.address, authorize=let_in)
    assert failed.value.code is CloseCode.SHUTTING_DOWN


async def test_cancelling_serve_is_a_shutdown_too(make_link: MakeLink, alice: Node) -> None:
    async with trio.open_nursery() as own:
        bob = Node(make_link(BOB), own)
        await bob.start()
        connection, _ = await alice.dial(bob)
        own.cancel_scope.cancel()
    assert (await connection.wait_closed()).code is CloseCode.SHUTTING_DOWN


async def test_a_cancelled_dial_leaves_nothing_behind(alice: Node, bob: Node) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await alice.link.dial(bob.address, authorize=let_in)
    ours, _ = await alice.dial(bob)
    assert ours.peer == BOB.device


async def test_dial_waits_for_serve(make_link: MakeLink, alice: Node) -> None:
    async with trio.open_nursery() as own:
        bob = Node(make_link(BOB), own)
        own.start_soon(bob.dial, alice)
        await trio.testing.wait_all_tasks_blocked()
        await bob.start()
        assert (await alice.accepted.receive()).peer == BOB.device
        own.cancel_scope.cancel()


async def test_a_port_in_use_is_reported(make_link: MakeLink, alice: Node) -> None:
    if isinstance(alice.link, QuicLink):
        second: Link = QuicLink(BOB, alice.address)
    else:
        second = alice.link.network.link(BOB, alice.address)  # type: ignore[attr-defined]
    with pytest.raises(WorldError, match="another program uses this port"):
        await second.serve(let_in, alice.handle)
