"""Decides when to scan what: dirty paths soon after they fall quiet, everything now and then.

The watcher only hints. A path is scanned 20 ms after its first event. One that keeps changing backs
off: the time between two of its scans doubles, up to 10 s. A full scan runs at the start, when the
watcher lost track, and once an hour. Only one scan runs at a time, so a path is never read twice at
once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import trio

from node.sync.bell import Bell
from node.sync.scan import Scan, ScanReport

logger = logging.getLogger("shoal.watch")

QUIET_S: Final = 0.02  # from the first event of a path to its scan
BACKOFF_MAX_S: Final = 10.0
CALM_FACTOR: Final = 4.0  # a path that was still for so many of its delays starts at QUIET_S again
FULL_EVERY_S: Final = 3600.0
LIMITED_EVERY_S: Final = 60.0  # where some directories cannot be watched
PATIENCE_S: Final = 0.06  # for the other half of a move, before something counts as deleted
DIRTY_MAX: Final = 50_000  # paths; beyond that a full scan is cheaper


@dataclass(slots=True)
class Busy:
    """A path that was scanned lately: how long to leave it alone, and since when."""

    delay_s: float
    scanned_at: float

    @property
    def next_at(self) -> float:
        """Before that it is not scanned again."""
        return self.scanned_at + self.delay_s

    def calm(self, now: float) -> bool:
        """True when the path was still long enough to count as one that does not keep changing."""
        return now - self.scanned_at > CALM_FACTOR * self.delay_s


@dataclass(slots=True)
class Progress:
    """How far the present scan is."""

    full: bool = False
    files: int = 0
    bytes: int = 0


class ScanService:
    """Runs scans for one folder, one at a time."""

    def __init__(
        self,
        make_scan: Callable[[Callable[[int, int], None]], Scan],
        *,
        allowed: Callable[[], bool],
        on_report: Callable[[ScanReport], None],
    ) -> None:
        """Args:
        make_scan: A fresh `Scan` that reports progress to the function given.
        allowed: False while the folder is paused or stopped, asked before each scan.
        on_report: Told what each scan did.
        """
        self._make_scan = make_scan
        self._allowed = allowed
        self._on_report = on_report
        self._due: dict[str, float] = {}
        self._busy: dict[str, Busy] = {}
        self._full_at = 0.0
        self._full_every_s = FULL_EVERY_S
        self._wake = Bell()
        self.done = Bell()  # rings after every scan
        self.progress: Progress | None = None
        self.first_done = False
        self.is_unfinished = False  # a scan failed, and no full one has come to its end since
        self.later: dict[str, float] = {}  # trees to be looked at once more, and when

    @property
    def quiet(self) -> bool:
        """True when nothing is scanned or waits for it."""
        waits = self.progress is not None or self._due or self.is_unfinished
        return self.first_done and not waits

    def hint(self, paths: Iterable[str]) -> None:
        """Something may have changed at these paths."""
        now = trio.current_time()
        for path in paths:
            if path in self._due:
                continue
            busy = self._busy.get(path)
            self._due[path] = max(now + QUIET_S, 0.0 if busy is None else busy.next_at)
        if len(self._due) > DIRTY_MAX:
            self.everything()
        self._wake.ring()

    def again(self, path: str, delay_s: float) -> None:
        """Look at `path` and all that is below it after a while."""
        self.later.setdefault(path, trio.current_time() + delay_s)
        if len(self.later) > DIRTY_MAX:
            self._full_at = min(self._full_at, trio.current_time() + delay_s)
            self.later.clear()

    def everything(self) -> None:
        """The watcher lost track, or somebody asks: look at the whole folder soon."""
        self._due.clear()
        self.later.clear()
        self._full_at = 0.0
        self._wake.ring()

    def scan_often(self) -> None:
        """Not everything is watched: full scans find the rest."""
        self._full_every_s = LIMITED_EVERY_S

    async def scan_now(self) -> None:
        """Ask for a full scan and wait until one that began after this call is done."""
        if self.progress is not None:
            await self.done.wait_past(self.done.count)
        count = self.done.count
        self.everything()
        await self.done.wait_past(count)

    async def serve(self) -> None:
        """Scan until cancelled."""
        while True:
            seen = self._wake.count
            now = trio.current_time()
            if self._allowed() and now >= self._full_at:
                self._full_at = now + self._full_every_s
                self._due.clear()
                self.later.clear()
                await self._run(full=True)
            elif self._allowed() and (ready := _take_ready(self._due, now)):
                await self._run(full=False, paths=ready)
            elif self._allowed() and (ready := _take_ready(self.later, now)):
                await self._run(full=False, trees=ready)
            else:
                dues = (*self._due.values(), *self.later.values(), self._full_at)
                next_at = min(dues) if self._allowed() else now + 1
                with trio.move_on_at(max(next_at, now + 0.001)):
                    await self._wake.wait_past(seen)

    async def _run(
        self, *, full: bool, paths: Iterable[str] = (), trees: Iterable[str] = ()
    ) -> None:
        progress = self.progress = Progress(full)

        def advance(files: int, size: int) -> None:
            progress.files, progress.bytes = files, size

        scan = self._make_scan(advance)
        try:
            for path in sorted(trees):
                await scan.tree(path)
            report = await (scan.everything() if full else self._run_paths(scan, set(paths)))
        except Exception:
            # Its hints are spent; the next full scan finds what they stood for.
            self._full_at = min(self._full_at, trio.current_time() + LIMITED_EVERY_S)
            self.is_unfinished = True
            raise
        finally:
            self.progress = None
        if full:
            self.first_done = True
            self.is_unfinished = False
        self._on_report(report)
        for path in report.retry:
            self._back_off(path)
        self.hint(sorted(report.retry))
        for path, delay_s in report.again.items():
            self.again(path, delay_s)
        self.done.ring()

    async def _run_paths(self, scan: Scan, paths: set[str]) -> ScanReport:
        started = trio.current_time()
        for path in paths:
            self._back_off(path)
        try:
            return await self._scan_paths(scan, paths)
        finally:
            now = trio.current_time()
            for path in paths & self._busy.keys():
                busy = self._busy[path]
                busy.delay_s = min(BACKOFF_MAX_S, max(busy.delay_s, (now - started) / len(paths)))
                busy.scanned_at = now

    async def _scan_paths(self, scan: Scan, paths: set[str]) -> ScanReport:
        await scan.paths(paths)
        if scan.has_missing:
            # What is missing here may be about to turn up elsewhere: wait for the watcher's word.
            seen = self._wake.count
            with trio.move_on_after(PATIENCE_S):
                await self._wake.wait_past(seen)
            late = set(self._due)
            self._due.clear()
            await scan.paths(late)
        return await scan.finish()

    def _back_off(self, path: str) -> None:
        now = trio.current_time()
        busy = self._busy.get(path)
        delay = QUIET_S
        if busy is not None and not busy.calm(now):
            delay = min(BACKOFF_MAX_S, busy.delay_s * 2)
        self._busy[path] = Busy(delay, now)
        if len(self._busy) > DIRTY_MAX:
            self._busy.clear()


def _take_ready(dues: dict[str, float], now: float) -> set[str]:
    ready = {path for path, due in dues.items() if due <= now}
    for path in ready:
        del dues[path]
    return ready
