"""Time, chance and threads of a simulated device: the ports of `node.ports`, all determined.

Monotonic time is trio's, under a MockClock that jumps whenever everybody waits. What a wall clock
says is another matter on each device: it may be years off, coarse, and may jump.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, TypeVar

import trio

T = TypeVar("T")

START_NS: Final = 1_790_000_000 * 10**9  # somewhere in 2026
LOOK_NS: Final = 1_000  # a look at the clock takes a microsecond; nothing else takes any time


class SimClock:
    """`Clock` of one device, shared by its node and its disk."""

    def __init__(self, skew_ns: int = 0) -> None:
        self.skew_ns = skew_ns
        self._looks = 0

    def monotonic_s(self) -> float:
        """See `Clock`."""
        return trio.current_time()

    def wall_ns(self) -> int:
        """See `Clock`."""
        self._looks += 1
        passed_ns = int(trio.current_time() * 1e9)
        return START_NS + self.skew_ns + passed_ns + self._looks * LOOK_NS


class SimRandom:
    """`Random` that repeats."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def bytes(self, size: int) -> bytes:
        """See `Random`."""
        return self._random.randbytes(size)

    def uniform(self, low: float, high: float) -> float:
        """See `Random`."""
        return self._random.uniform(low, high)


class SimThreads:
    """`Threads` on the loop. The work itself takes no time, but waits before and after it, so that
    other tasks, people and faults come in between.
    """

    def __init__(self, chance: random.Random, latency_max_s: float) -> None:
        self._chance = chance
        self._latency_max_s = latency_max_s

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """See `Threads`."""
        await self._wait()
        result = function(*args)
        await self._wait()
        return result

    async def _wait(self) -> None:
        if self._latency_max_s and self._chance.random() < 0.5:
            await trio.sleep(self._chance.random() ** 3 * self._latency_max_s)
        else:
            await trio.lowlevel.checkpoint()
