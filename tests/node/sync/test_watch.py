"""When paths are scanned, on a clock that the test turns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from node.sync.scan import ScanReport
from node.sync.watch import BACKOFF_MAX_S, QUIET_S, ScanService


class Scans:
    """Stands for `Scan`; notes when which path was scanned."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}
        self.takes_s = 0.0
        self.has_missing = False

    def make(self, _progress: Callable[[int, int], None]) -> Scans:
        return self

    async def everything(self) -> ScanReport:
        return ScanReport(full=True)

    async def paths(self, paths: Iterable[str]) -> None:
        for path in paths:
            self.times.setdefault(path, []).append(trio.current_time())
        await trio.sleep(self.takes_s)

    async def finish(self) -> ScanReport:
        return ScanReport(full=False)


@asynccontextmanager
async def service(scans: Scans) -> AsyncIterator[ScanService]:
    made = ScanService(scans.make, allowed=lambda: True, on_report=lambda _: None)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.serve)
        await made.scan_now()
        yield made
        nursery.cancel_scope.cancel()


async def test_saves_now_and_then_are_each_scanned_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scans = Scans()
    async with service(scans) as made:
        saved = []
        for _ in range(30):
            await trio.sleep(0.5)
            saved.append(trio.current_time())
            made.hint(["f"])
        await trio.sleep(1)
    waits = [at - save for at, save in zip(scans.times["f"], saved, strict=True)]
    assert max(waits) == pytest.approx(QUIET_S)


@pytest.mark.parametrize("takes_s", [0.0, 1.0])
async def test_what_keeps_changing_is_scanned_less_and_less(
    takes_s: float, autojump_clock: trio.testing.MockClock
) -> None:
    scans = Scans()
    scans.takes_s = takes_s
    async with service(scans) as made:
        for _ in range(12_000):
            made.hint(["f"])
            await trio.sleep(0.01)
        gaps = [b - a for a, b in zip(scans.times["f"], scans.times["f"][1:], strict=False)]
        assert BACKOFF_MAX_S - 0.1 < gaps[-1] < BACKOFF_MAX_S + takes_s + 0.1
        # Once it is quiet, its last state is seen, and a save much later at once.
        await trio.sleep(2 * BACKOFF_MAX_S)
        saved = trio.current_time()
        made.hint(["f"])
        await trio.sleep(1)
        assert scans.times["f"][-1] - saved == pytest.approx(QUIET_S)
