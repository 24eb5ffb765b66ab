"""A relay among real engines, all in one process, on a clock that jumps."""

from __future__ import annotations

import trio.testing

from tests.support.relay_world import RelayHost, World


async def test_devices_that_never_meet(autojump_clock: trio.testing.MockClock) -> None:
    world = World(2)
    anna, ben = world.members
    relay = RelayHost(world, 1)
    noise = world.noise.randbytes(300_000)
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake():
            anna.write("small.txt", b"small")
            anna.write("large.bin", noise)
            await anna.held_by(2)
        async with ben.awake():
            await ben.until(lambda: ben.tree() == anna.tree())
            ben.write("large.bin", noise + b"more")
            await ben.held_by(2)
        async with anna.awake():
            await anna.until(lambda: anna.tree() == ben.tree())
            assert not anna.warnings
