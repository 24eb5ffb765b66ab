"""A gentle look at everything, again and again: one service that reads a few files at a time.

Once through the folder takes `PERIOD_S`, however large it is: each file is paid for with a pause in
proportion to its share of the files and of the bytes. The place is remembered in the index, so a
restart neither begins anew nor hurries. Ahead of the round come files that somebody could not read
a block from, and, once, those that are no longer fresh (`node.sync.fresh`).

If the process dies at any point, nothing but the pause since the last note is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from crdt.codec import pack, unpack
from crdt.ids import ItemId
from node.sync.bell import Bell
from node.sync.folder import Folder
from node.sync.rot import Rot, Verdict

logger = logging.getLogger("shoal.scrub")

PERIOD_S: Final = 30 * 24 * 3600.0  # once through everything
NOTE_EVERY_S: Final = 60.0  # of pauses: what is due within that is read in one go, and noted once
STEP_FILES_MAX: Final = 64  # files in one go
SUSPECTS_MAX: Final = 10_000
_PLACE: Final = "scrub"  # key in `meta`
_PLACE_SIZE_MAX: Final = 64
NS: Final = 1_000_000_000


class Scrub:
    """The service for one folder."""

    def __init__(
        self,
        folder: Folder,
        rot: Rot,
        *,
        allowed: Callable[[], bool],
        warn: Callable[[str, str], None],
    ) -> None:
        """Args:
        allowed: False while the folder is paused or stopped.
        warn: Told the path of a rotten file, and what to say.
        """
        self._folder = folder
        self._rot = rot
        self._allowed = allowed
        self._warn = warn
        self._suspects: dict[ItemId, None] = {}
        self._wake = Bell()

    def suspect(self, item: ItemId) -> None:
        """A block could not be read out of this file: look at it soon."""
        if len(self._suspects) < SUSPECTS_MAX:
            self._suspects[item] = None
            self._wake.ring()

    async def serve(self) -> None:
        """Look, until cancelled."""
        while True:
            seen = self._wake.count
            if self._allowed():
                await self.step(self._folder.clock.wall_ns())
            with trio.move_on_after(NOTE_EVERY_S):
                await self._wake.wait_past(seen)

    async def step(self, now_ns: int) -> None:
        """Look at what is due at `now_ns`."""
        while self._suspects:
            item = next(iter(self._suspects))
            del self._suspects[item]
            await self._look_at(item)
        fresh = self._folder.fresh
        for item in fresh.settled(self._folder.clock.monotonic_s()):
            await self._look_at(item)
            fresh.discard(item)
        after, due_ns = self._place()
        if now_ns < due_ns <= now_ns + int(PERIOD_S * NS):
            return
        pause_s = 0.0
        for _ in range(STEP_FILES_MAX):
            found = self._next(after)
            if found is None:
                after = b""
                pause_s = max(pause_s, NOTE_EVERY_S)  # an empty folder is gone through quickly
                break
            item, size = found
            await self._look_at(item)
            after = item
            pause_s += self._share(size) * PERIOD_S
            if pause_s >= NOTE_EVERY_S:
                break
        self._note(after, now_ns + int(pause_s * NS))

    async def _look_at(self, item: ItemId) -> None:
        checked = await self._rot.check(item)
        if checked is None or checked.verdict is not Verdict.ROTTEN:
            return
        self._rot.mark(item, checked.digest)
        self._warn(
            checked.path,
            "its bytes changed on the disk without an edit; what was there is fetched from another "
            "device as soon as one has it",
        )

    def _share(self, size: int) -> float:
        """A file's part of the whole folder, from 0 to 1."""
        totals = self._folder.tree.totals()
        return min(1.0, 0.5 / max(1, totals.files) + 0.5 * size / max(1, totals.bytes, size))

    def _next(self, after: bytes) -> tuple[ItemId, int] | None:
        found = self._folder.database.connection.execute(
            "SELECT item, size FROM disk WHERE item > ? AND kind = 1 ORDER BY item LIMIT 1",
            (after,),
        ).fetchone()
        return None if found is None else (ItemId(found[0]), found[1])

    def _place(self) -> tuple[bytes, int]:
        """The item that was read last, and when to go on; a damaged note begins anew."""
        found = self._folder.database.connection.execute(
            "SELECT value FROM meta WHERE key = ?", (_PLACE,)
        ).fetchone()
        if found is not None:
            match unpack(found[0], size_max=_PLACE_SIZE_MAX):
                case [bytes(after), int(due_ns)]:
                    return after, due_ns
                case _:
                    pass
        return b"", 0

    def _note(self, after: bytes, due_ns: int) -> None:
        with self._folder.transaction():
            self._folder.database.connection.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", (_PLACE, pack([after, due_ns]))
            )
