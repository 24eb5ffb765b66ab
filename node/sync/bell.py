"""A bell: wakes whoever waits, and remembers one ring for whoever does not wait yet."""

from __future__ import annotations

import trio


class Bell:
    """One waiter or many; a ring before `wait` is not lost, several rings count once."""

    def __init__(self) -> None:
        self._count = 0
        self._event = trio.Event()

    @property
    def count(self) -> int:
        """How often it rang; pass it to `wait_past`."""
        return self._count

    def ring(self) -> None:
        """Wake all who wait."""
        self._count += 1
        self._event.set()
        self._event = trio.Event()

    async def wait_past(self, count: int) -> int:
        """Return the present count once it is greater than `count`."""
        while self._count <= count:
            await self._event.wait()
        return self._count
