"""What history no longer needs goes from a relay, and nothing else does; on a clock that jumps."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from crdt.deposit import sign_drop
from crdt.ids import BlockId
from crdt.roster_ops import Role
from crdt.version_vector import VersionVector
from node.history.policy import Policy
from node.relay.storage import DROP_GRACE_S
from node.sync.deposit_stream import DepositStream
from node.sync.dropper import Dropper
from tests.support.relay_world import Member, RelayHost, World
from transport.relay_messages import (
    Depot,
    Drop,
    Offer,
    OpenDeposits,
    Place,
)

pytestmark = pytest.mark.slow

KEEP_S = 100


@pytest.fixture(autouse=True)
def _short_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.sync.dropper.KEEP_S_MIN", KEEP_S)


async def look(member: Member, relay: RelayHost) -> int | None:
    """As once a day, after history has had its hour."""
    member.engine.history.policy = Policy(all_s=KEEP_S, daily_s=KEEP_S)
    await member.engine.history.tidy()
    return await Dropper(member.engine, member.connection_to(relay)).look()


async def size(relay: RelayHost) -> int:
    return (await relay.storage.usage(relay.world.folder)).block_bytes


async def replaced(anna: Member, relay: RelayHost) -> tuple[bytes, int]:
    """Two versions of a large file, the older one unneeded for long enough and dropped."""
    noise = anna.world.noise
    old = noise.randbytes(400_000)
    anna.write("large.bin", old)
    anna.write("other.bin", noise.randbytes(100_000))
    await anna.held_by(2)
    anna.write("large.bin", noise.randbytes(300_000))
    await anna.held_by(2)
    assert await size(relay) >= 800_000
    assert await look(anna, relay) == 0, "needed a moment ago"
    await trio.sleep(KEEP_S / 2)
    assert await look(anna, relay) == 0, "not for long enough"
    await trio.sleep(KEEP_S)
    dropped = await look(anna, relay)
    assert dropped
    assert relay.relay.counters.drops_total == dropped
    return old, dropped


async def test_old_versions_go_after_the_grace_period(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(2)
    anna, ben = world.members
    relay = RelayHost(world, 1)
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake():
            _, dropped = await replaced(anna, relay)
            assert await look(anna, relay) == 0, "told once"
            relay.time_s += DROP_GRACE_S - 1
            assert await relay.collect() == 0
            relay.time_s += 1
            assert await relay.collect() == dropped
            assert relay.relay.counters.blocks_collected_total == dropped
            assert 400_000 <= await size(relay) < 500_000
            await anna.held_by(2)
        async with ben.awake():
            await ben.until(lambda: ben.tree() == anna.tree())


async def test_what_is_needed_again_stays(autojump_clock: trio.testing.MockClock) -> None:
    world = World(2)
    anna, ben = world.members
    relay = RelayHost(world, 1)
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake():
            old, _ = await replaced(anna, relay)
            anna.write("again.bin", old)
            await anna.held_by(2)
            relay.time_s += DROP_GRACE_S
            assert await relay.collect() == 0
        async with ben.awake():
            await ben.until(lambda: ben.tree() == anna.tree())


async def test_what_was_deleted_goes_too(autojump_clock: trio.testing.MockClock) -> None:
    world = World(2)
    anna, ben = world.members
    relay = RelayHost(world, 1)
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake(), ben.awake():
            anna.write("large.bin", world.noise.randbytes(400_000))
            await ben.until(lambda: ben.tree() == anna.tree())
            ben.fs.unlink("large.bin")
            await ben.held_by(2)
            await anna.until(lambda: not anna.tree())
            await anna.held_by(2)
            assert await look(anna, relay) == 0
            await trio.sleep(2 * KEEP_S)
            dropped = await look(anna, relay)
            assert dropped
            assert relay.relay.counters.drops_total == dropped
            relay.time_s += DROP_GRACE_S
            assert await relay.collect() == dropped
            assert await size(relay) == 0


async def test_readers_drop_nothing(autojump_clock: trio.testing.MockClock) -> None:
    world = World(2, roles={2: Role.READER})
    anna, ben = world.members
    relay = RelayHost(world, 1)
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake(), ben.awake():
            anna.write("large.bin", world.noise.randbytes(400_000))
            await ben.until(lambda: ben.tree() == anna.tree())
            await ben.held_by(2)
            assert await look(ben, relay) is None


async def drop(member: Member, relay: RelayHost, have: VersionVector) -> None:
    """Drop whatever the relay keeps, needed or not."""
    blocks = tuple(await relay.storage.listed(relay.world.folder, b"", 64))
    stream = DepositStream(await member.connection_to(relay).open_stream())
    folder = member.engine.folder
    await stream.send(OpenDeposits(folder.id, Place()))
    assert isinstance(await stream.next(), Depot)
    signature = sign_drop(folder.identity.seed, folder.id, have, blocks)
    await stream.send(Drop(blocks, have, signature))
    await stream.send(Offer(1, (BlockId(b"q" * 32),)))
    await stream.next()  # it has dealt with the drop
    await stream.aclose()


async def test_a_drop_by_who_has_not_seen_everything_is_void(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(1)
    (anna,) = world.members
    relay = RelayHost(world, 1)
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake():
            before = anna.engine.folder.have
            anna.write("large.bin", world.noise.randbytes(400_000))
            await anna.held_by(2)
            await drop(anna, relay, before)
            assert relay.relay.counters.drops_total == 0
            relay.time_s += DROP_GRACE_S
            assert await relay.collect() == 0


async def test_a_false_drop_is_made_good(autojump_clock: trio.testing.MockClock) -> None:
    world = World(3)
    anna, ben, cleo = world.members
    relay = RelayHost(world, 1)
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake(), ben.awake():
            anna.write("large.bin", world.noise.randbytes(400_000))
            await anna.held_by(2)
            await ben.until(lambda: ben.tree() == anna.tree())
            await anna.until(lambda: anna.engine.folder.have == ben.engine.folder.have)
            await ben.held_by(2)
            before = await size(relay)
            await drop(ben, relay, ben.engine.folder.have)
            relay.time_s += DROP_GRACE_S
            assert await relay.collect()
            await anna.held_by(2)
            while await size(relay) < before:
                await trio.sleep(1)
        async with cleo.awake():
            await cleo.until(lambda: cleo.tree() == anna.tree())
