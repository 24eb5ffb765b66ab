"""Bytes a second, shared by all who spend them. In order of arrival, none is left out."""

from __future__ import annotations

import trio


class Rate:
    """A budget that fills by `per_s` bytes a second and holds one second's worth."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._free_at_s = 0.0

    async def spend(self, size: int) -> None:
        """Wait until `size` bytes may move."""
        if self._per_s == float("inf"):
            return
        now = trio.current_time()
        begin = max(self._free_at_s, now - 1.0)
        self._free_at_s = begin + size / self._per_s
        await trio.sleep_until(self._free_at_s)
