"""History's own clock: seconds that this device has witnessed, kept in the index.

It runs with the monotonic clock while the node runs, and gains at most a day for the time between
two runs, for which the wall clock is the only witness. So a wall clock that is wrong by years, once
or on every start, makes no version old at once; a device that sleeps a lot keeps its history for
longer. It never goes back, but for what a crash takes: less than the time between two saves.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from node.history.policy import DAY_S
from node.ports import Clock

CREDIT_MAX_S: Final = DAY_S  # for the time between two runs, whatever the wall clock says
_SECONDS: Final = "history seconds"
_WALL: Final = "history wall"


class HistoryClock:
    """The clock of one folder's history."""

    def __init__(self, db: sqlite3.Connection, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        seconds, wall_s = self._read(_SECONDS), self._read(_WALL)
        away_s = 0 if wall_s is None else self._wall_s() - wall_s
        self._base_s = (seconds or 0) + min(max(0, away_s), CREDIT_MAX_S)
        self._began_s = clock.monotonic_s()

    def now_s(self) -> int:
        """Seconds since the folder's index was made, as far as they were witnessed."""
        return self._base_s + int(max(0.0, self._clock.monotonic_s() - self._began_s))

    def save(self) -> None:
        """Write the present reading, in the caller's transaction."""
        for key, value in ((_SECONDS, self.now_s()), (_WALL, self._wall_s())):
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _wall_s(self) -> int:
        return self._clock.wall_ns() // 10**9

    def _read(self, key: str) -> int | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return int(row[0]) if row is not None and isinstance(row[0], int) else None
