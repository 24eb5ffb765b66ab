"""What a relay does by itself: its clock, the scrub, and collecting."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from node.relay.upkeep import AWAY_MAX_S, NOTES, RelayClock, Upkeep
from tests.support.memory_storage import MemoryStorage
from tests.support.relay_world import RelayHost, World

DAY_S = 24 * 3600


class HandClock:
    """Goes only when told to."""

    def __init__(self) -> None:
        self.wall_s = 1_790_000_000.0
        self.ran_s = 500.0

    def monotonic_s(self) -> float:
        """See `Clock`."""
        return self.ran_s

    def wall_ns(self) -> int:
        """See `Clock`."""
        return int(self.wall_s * 1e9)


def test_the_clock_runs_while_the_relay_does(tmp_path: Path) -> None:
    hand = HandClock()
    clock = RelayClock(tmp_path, hand)
    assert clock.now_s() == 0
    hand.ran_s += 1_000
    hand.wall_s += 100 * 365 * DAY_S
    assert clock.now_s() == 1_000, "the wall clock is not believed"
    clock.scrub_after = b"place"
    clock.save()
    again = RelayClock(tmp_path, hand)
    assert (again.now_s(), again.scrub_after) == (1_000, b"place")
    hand.wall_s += 300
    assert RelayClock(tmp_path, hand).now_s() == 1_300
    hand.wall_s += 100 * 365 * DAY_S
    assert RelayClock(tmp_path, hand).now_s() == 1_000 + AWAY_MAX_S
    hand.wall_s = 0
    assert RelayClock(tmp_path, hand).now_s() == 1_000, "it never goes back"


@pytest.mark.parametrize("notes", [b"", b"{}", b"[1]", b'{"seconds": "x"}', b"\xff"])
def test_damaged_notes_make_nothing_older(tmp_path: Path, notes: bytes) -> None:
    (tmp_path / NOTES).write_bytes(notes)
    assert RelayClock(tmp_path, HandClock()).now_s() == 0


@pytest.mark.slow
async def test_rot_is_found_and_mended_without_anybody_asking(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    world = World(2)
    anna, ben = world.members
    relay = RelayHost(world, 1)
    storage = relay.storage
    assert isinstance(storage, MemoryStorage)
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake():
            anna.write("large.bin", world.noise.randbytes(300_000))
            await anna.held_by(2)
            blocks = await storage.listed(world.folder, b"", 100)
            storage.corrupt(world.folder, blocks[0])
            storage.corrupt(world.folder, blocks[1])
            storage.on_lost = relay.relay.lost
            upkeep = Upkeep(
                storage, lambda: 0, relay.relay.counters, gone=relay.relay.gone, grace_s=0
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(upkeep.serve, RelayClock(tmp_path, world.clock))
                while relay.relay.counters.blocks_lost_total < 2:
                    await trio.sleep(1)
                while await storage.lacking(world.folder, blocks):
                    await trio.sleep(1)
                nursery.cancel_scope.cancel()
            assert relay.relay.counters.blocks_scrubbed_total >= len(blocks)
            await anna.held_by(2)
        async with ben.awake():
            await ben.until(lambda: ben.tree() == anna.tree())
