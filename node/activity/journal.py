"""Tells deeds: the newest of the past for `shoal log`, and new ones as they come for listeners.

Reading goes entry by entry with a checkpoint between, so that a long log holds nobody up. Whoever
follows starts at the log's end; nothing is opened while nobody listens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from crdt.errors import ShoalError
from crdt.ids import ItemId
from node.activity.deeds import CONFLICT, Deed, deeds_of
from node.sync.engine import FolderEngine

logger = logging.getLogger("shoal.journal")


async def newest_deeds(engine: FolderEngine, prefix: str, limit: int) -> list[Deed]:
    """Up to `limit` deeds at `prefix` and below it, "" for all, the newest first."""
    folder, found = engine.folder, list[Deed]()
    for arrival, time_ms in folder.log.by_time():
        told = deeds_of(folder, folder.log.at(arrival), time_ms)
        found += [deed for deed in told if _within(deed, prefix)]
        if len(found) >= limit:
            break
        await trio.lowlevel.checkpoint()
    return found[:limit]


def _within(deed: Deed, prefix: str) -> bool:
    paths = (deed.path, deed.was or deed.path)
    return not prefix or any(p == prefix or p.startswith(f"{prefix}/") for p in paths)


async def serve_journal(
    engine: FolderEngine,
    tell: Callable[[list[Deed]], None],
    *,
    wanted: Callable[[], bool],
) -> None:
    """Tell new deeds, conflicts among them, until cancelled; `wanted` says whether anybody hears.

    A deed with the action `conflict` says that a path has copies now that it had not.
    """
    folder = engine.folder
    seen, told = folder.advanced.count, folder.log.last_arrival
    conflicts = _conflicts(engine)
    while True:
        seen = await folder.advanced.wait_past(seen)
        if not wanted():
            told, conflicts = folder.log.last_arrival, set()
            continue
        while new := folder.log.after(told):
            for told, time_ms in new:
                try:
                    tell(deeds_of(folder, folder.log.at(told), time_ms))
                except ShoalError as error:
                    logger.warning("an entry could not be told: %s", error)
                await trio.lowlevel.checkpoint()  # listeners take what they were told
        now = _conflicts(engine)
        tell(_new_conflicts(engine, now - conflicts))
        conflicts = now


def _conflicts(engine: FolderEngine) -> set[ItemId]:
    if not engine.folder.tree.totals().conflicts:
        return set()
    return {row.item for row in engine.folder.tree.conflicts()}


def _new_conflicts(engine: FolderEngine, items: set[ItemId]) -> list[Deed]:
    folder = engine.folder
    now_ms = folder.clock.wall_ns() // 1_000_000
    found = []
    for item in sorted(items):
        row, path = folder.tree.row(item), folder.tree.path(item)
        if row is not None and path is not None:
            found.append(Deed(now_ms, row.content.device, CONFLICT, path))
    return found
