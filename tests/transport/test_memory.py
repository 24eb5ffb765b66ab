"""What the network in memory can do to its links, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from crdt.ids import DeviceId
from transport.identity import Identity
from transport.link import (
    HANDSHAKE_TIMEOUT_S,
    VANISHED_AFTER_S,
    CloseCode,
    Connection,
    DialError,
    LinkClosedError,
)
from transport.memory import MemoryLink, MemoryNetwork

ALICE = Identity.from_seed(b"A" * 32)
BOB = Identity.from_seed(b"B" * 32)


def let_in(_peer: DeviceId) -> CloseCode | None:
    return None


async def stay(connection: Connection) -> None:
    await connection.wait_closed()


class World:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.network = MemoryNetwork()
        self.alice = self.network.link(ALICE)
        self.bob = self.network.link(BOB)
        self.send, self.accepted = trio.open_memory_channel[Connection](100)

    async def handle(self, connection: Connection) -> None:
        self.send.send_nowait(connection)
        await connection.wait_closed()

    async def serve(self, *links: MemoryLink) -> None:
        for link in links:
            await self.nursery.start(link.serve, let_in, self.handle)

    async def connect(self) -> tuple[Connection, Connection]:
        ours = await self.alice.dial(self.bob.address, authorize=let_in)
        return ours, await self.accepted.receive()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        await world.serve(world.alice, world.bob)
        yield world
        nursery.cancel_scope.cancel()


async def test_delay(world: World, autojump_clock: MockClock) -> None:
    world.network.set_delay(world.alice.address, world.bob.address, 0.5)
    start = trio.current_time()
    ours, theirs = await world.connect()
    assert trio.current_time() - start == pytest.approx(1.0)
    stream = await ours.open_stream()
    await stream.send_all(b"x")
    start = trio.current_time()
    assert await (await theirs.accept_stream()).receive_some() == b"x"
    assert trio.current_time() - start == pytest.approx(0.5)


async def test_a_short_partition_only_delays(world: World, autojump_clock: MockClock) -> None:
    ours, theirs = await world.connect()
    stream = await ours.open_stream()
    await stream.send_all(b"before ")
    other = await theirs.accept_stream()
    world.network.partition(world.alice.address, world.bob.address)
    await stream.send_all(b"during ")
    with trio.move_on_after(VANISHED_AFTER_S - 1):
        assert await other.receive_some() == b"before "
        await other.receive_some()
    world.network.heal(world.alice.address, world.bob.address)
    assert await other.receive_some() == b"during "


async def test_a_long_partition_is_noticed(world: World, autojump_clock: MockClock) -> None:
    ours, theirs = await world.connect()
    world.network.partition(world.alice.address, world.bob.address)
    start = trio.current_time()
    assert (await ours.wait_closed()).code is None
    assert (await theirs.wait_closed()).code is None
    assert trio.current_time() - start == pytest.approx(VANISHED_AFTER_S)
    start = trio.current_time()
    with pytest.raises(DialError) as failed:
        await world.alice.dial(world.bob.address, authorize=let_in)
    assert failed.value.code is None
    assert trio.current_time() - start == pytest.approx(HANDSHAKE_TIMEOUT_S)
    world.network.heal(world.alice.address, world.bob.address)
    await world.connect()


async def test_a_cut_breaks_both_ends_at_once(world: World, autojump_clock: MockClock) -> None:
    ours, theirs = await world.connect()
    stream = await ours.open_stream()
    world.network.cut(world.alice.address, world.bob.address)
    assert (await ours.wait_closed()).code is None
    assert (await theirs.wait_closed()).code is None
    with pytest.raises(LinkClosedError):
        await stream.receive_some()
    await world.connect()


async def test_a_crash_is_silent(world: World, autojump_clock: MockClock) -> None:
    ours, _ = await world.connect()
    world.bob.crash()
    start = trio.current_time()
    reborn = world.network.link(BOB, world.bob.address)
    await world.serve(reborn)
    await world.connect()
    assert (await ours.wait_closed()).code is None
    assert trio.current_time() - start == pytest.approx(VANISHED_AFTER_S)


async def test_who_is_not_there_yet_may_still_come(world: World, autojump_clock: MockClock) -> None:
    late = world.network.link(Identity.from_seed(b"L" * 32))
    async with trio.open_nursery() as nursery:

        async def dial() -> None:
            connection = await world.alice.dial(late.address, authorize=let_in)
            assert connection.address == late.address

        nursery.start_soon(dial)
        await trio.sleep(HANDSHAKE_TIMEOUT_S / 2)
        await world.serve(late)
