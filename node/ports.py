"""The ports through which a node touches the world, beside FileSystem (`node.files.port`) and Link
(`transport.link`).

Each has a real version here and a simulated one under `simulations`. Nothing else in the node
reads a clock, draws randomness or starts a thread.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

T = TypeVar("T")


class Clock(Protocol):
    """Time. Waiting goes through trio itself, whose clock a simulation replaces."""

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start, never going back; the same scale as
        `trio.current_time`.
        """
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since 1970 UTC, for people to read. May jump; no decision rests on it."""
        ...


class Random(Protocol):
    """Randomness."""

    def bytes(self, size: int) -> bytes:
        """`size` unpredictable bytes."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """A number between the two, for jitter."""
        ...


class Threads(Protocol):
    """Where blocking work runs."""

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Run `function(*args)` off the event loop and return its result."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_s(self) -> float:
        """See `Clock`."""
        return trio.current_time()

    def wall_ns(self) -> int:
        """See `Clock`."""
        return time.time_ns()


class SystemRandom:
    """The kernel's randomness."""

    def bytes(self, size: int) -> bytes:
        """See `Random`."""
        return os.urandom(size)

    def uniform(self, low: float, high: float) -> float:
        """See `Random`."""
        return low + (high - low) * secrets.randbelow(2**32) / 2**32


class TrioThreads:
    """trio's worker threads, at most `limit` at once."""

    def __init__(self, limit: int) -> None:
        self._limiter = trio.CapacityLimiter(limit)

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """See `Threads`."""
        return await trio.to_thread.run_sync(lambda: function(*args), limiter=self._limiter)
