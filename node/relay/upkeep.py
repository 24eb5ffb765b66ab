"""What a relay does by itself: reads everything again, and deletes what was dropped long ago.

Once through all blocks takes `SCRUB_PERIOD_S`, however many there are; where it has got to is
remembered in the home. A block that is damaged is forgotten and named in the log; members that hold
it bring it again.

Grace periods are told by a clock of the relay's own: the seconds for which it ran, and at most a
day for the time between two runs. So a wall clock that is wrong by years deletes nothing too soon.

Killed at any point, nothing is lost but the last hour of that clock and the last note of the scrub.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from crdt.errors import WorldError
from crdt.ids import BlockId, FolderId
from node.home import write_durably
from node.ports import Clock
from node.relay.limits import Counters
from node.relay.storage import DROP_GRACE_S, Scrubbed, Storage

logger = logging.getLogger("shoal.relay")

SCRUB_PERIOD_S: Final = 30 * 24 * 3600.0  # once through everything
SCRUB_STEP_SIZE: Final = 4 * 1024 * 1024  # bytes read in one go
SCRUB_PAUSE_MAX_S: Final = 24 * 3600.0  # a small relay is gone through every day
COLLECT_EVERY_S: Final = 3600.0
AWAY_MAX_S: Final = 24 * 3600  # that the wall clock alone is believed for
NOTES: Final = "upkeep"  # file in the home


class RelayClock:
    """Seconds that the relay has witnessed; see the module."""

    def __init__(self, home: Path, clock: Clock) -> None:
        self._path = home / NOTES
        self._clock = clock
        self._base_s, self.scrub_after = 0, b""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            notes = json.loads(self._path.read_bytes())
            seconds, wall_s = int(notes["seconds"]), int(notes["wall_s"])
            self.scrub_after = bytes.fromhex(notes["scrub_after"])
            self._base_s = seconds + min(max(0, self._wall_s() - wall_s), AWAY_MAX_S)
        self._began_s = clock.monotonic_s()

    def now_s(self) -> int:
        """Seconds since the relay's first start, as far as they were witnessed."""
        return self._base_s + int(max(0.0, self._clock.monotonic_s() - self._began_s))

    def save(self) -> None:
        """Write it down.

        Raises:
            OSError: the disk refused.
        """
        notes = {
            "seconds": self.now_s(),
            "wall_s": self._wall_s(),
            "scrub_after": self.scrub_after.hex(),
        }
        write_durably(self._path, json.dumps(notes).encode())

    def _wall_s(self) -> int:
        return self._clock.wall_ns() // 10**9


class Upkeep:
    """The services; see the module."""

    def __init__(
        self,
        storage: Storage,
        time_s: Callable[[], int],
        counters: Counters,
        *,
        gone: Callable[[FolderId], None],
        grace_s: int = DROP_GRACE_S,
    ) -> None:
        """Args:
        time_s: The clock of grace periods, in seconds.
        gone: Told of folders of which blocks were deleted.
        """
        self._storage = storage
        self._time_s = time_s
        self._counters = counters
        self._gone = gone
        self._grace_s = grace_s

    async def serve(self, notes: RelayClock) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._guard, lambda: self._scrub_gently(notes))
            nursery.start_soon(self._guard, lambda: self._collect_hourly(notes))

    async def _guard(self, service: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await service()
            except (OSError, WorldError) as error:
                logger.warning("upkeep waits: %s; nothing is lost", error)
            except Exception:  # a bug in here must not end the relay
                logger.exception("upkeep failed; it is started again")
            await trio.sleep(COLLECT_EVERY_S)

    # --- reading everything again ---------------------------------------------------------------

    async def _scrub_gently(self, notes: RelayClock) -> None:
        while True:
            step = await self.scrub_step(notes.scrub_after)
            notes.scrub_after = step.after
            total = sum([(await self._storage.usage(f)).block_bytes
                         for f in await self._storage.folders()])  # fmt: skip
            share = step.size / max(total, step.size, 1)
            pause_s = share * SCRUB_PERIOD_S
            await trio.sleep(min(pause_s, SCRUB_PAUSE_MAX_S) if step.size else SCRUB_PAUSE_MAX_S)

    async def scrub_step(self, after: bytes) -> Scrubbed:
        """Read the next blocks."""
        step = await self._storage.scrub(after, SCRUB_STEP_SIZE)
        self._counters.blocks_scrubbed_total += step.blocks
        return step

    async def scrub_all(self) -> list[tuple[FolderId, BlockId]]:
        """Read everything now; returns what was damaged and is forgotten."""
        lost: list[tuple[FolderId, BlockId]] = []
        after = b""
        while True:
            step = await self.scrub_step(after)
            lost += step.lost
            after = step.after
            if not after:
                return lost

    # --- deleting what was dropped --------------------------------------------------------------

    async def _collect_hourly(self, notes: RelayClock) -> None:
        while True:
            notes.save()
            await self.collect()
            await trio.sleep(COLLECT_EVERY_S)

    async def collect(self) -> int:
        """Delete what was dropped before the grace period; returns how many blocks went."""
        gone = await self._storage.collect(before_s=self._time_s() - self._grace_s)
        for folder, count in gone.items():
            self._counters.blocks_collected_total += count
            logger.info(
                "%d blocks of folder %s were dropped and are deleted", count, folder.hex()[:16]
            )
            self._gone(folder)
        return sum(gone.values())
