"""How `up` and `join` show what the node does: bars on a terminal, plain lines elsewhere.

The ready line goes to stdout, everything else to stderr. Called on the node's loop, so nothing
here waits; rich draws its bars from a thread of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final

import click
from rich import progress as bars
from rich.console import Console

from node.cli.common import Invocation, is_terminal
from node.cli.status import SHORT, progress_text
from node.cli.text import duration_text, printable, size_text
from node.control.facade import Phase, Progress
from node.control.options import Ready, Reporter
from node.control.shapes import dumps

LINE_PERIOD_S: Final = 5.0  # between two plain lines: a log file is no place for more


@contextlib.contextmanager
def reporter(invocation: Invocation) -> Iterator[Reporter]:
    """The reporter that fits where output goes; draws nothing any more when the block ends."""
    if invocation.json or not is_terminal(2):
        yield PlainReporter(json=invocation.json)
        return
    bar = BarReporter(Console(stderr=True))
    try:
        yield bar
    finally:
        bar.progress(None)


class Meter:
    """Rate and time left of one phase, from its `Progress` alone."""

    def __init__(self, first: Progress, now: float) -> None:
        self.phase = first.phase
        self._started = now
        self._done_before = first.done_bytes

    def rate(self, progress: Progress, now: float) -> float:
        """Bytes a second since the phase began."""
        elapsed_s = now - self._started
        return (progress.done_bytes - self._done_before) / elapsed_s if elapsed_s > 0 else 0.0

    def text(self, progress: Progress, now: float) -> str:
        """One line: what, how far, how fast, how long still."""
        rate = self.rate(progress, now)
        text = f"{progress_text(progress)}, {size_text(rate)}/s"
        left = progress.total_bytes - progress.done_bytes
        return f"{text}, {duration_text(left / rate)} left" if rate > 0 and left > 0 else text


class PlainReporter:
    """Lines; for log files, pipes and scripts."""

    def __init__(self, *, json: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._json = json
        self._clock = clock
        self._meter: Meter | None = None
        self._next = 0.0

    def ready(self, ready: Ready) -> None:
        """See `Reporter`."""
        click.echo(dumps({"ready": True, **_fields(ready)}) if self._json else ready_text(ready))

    def progress(self, progress: Progress | None) -> None:
        """See `Reporter`."""
        now = self._clock()
        if progress is None:
            self._meter = None
        elif self._meter is None or self._meter.phase is not progress.phase:
            # What is done before the first period is over needs no line.
            self._meter, self._next = Meter(progress, now), now + LINE_PERIOD_S
        elif now >= self._next:
            self._next = now + LINE_PERIOD_S
            click.echo(self._meter.text(progress, now), err=True)

    def warning(self, message: str) -> None:
        """See `Reporter`."""
        click.echo(f"warning: {printable(message)}", err=True)


class BarReporter:
    """One bar with rate and time left, while there is long work."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: bars.Progress | None = None
        self._task = bars.TaskID(0)
        self._phase: Phase | None = None

    def ready(self, ready: Ready) -> None:
        """See `Reporter`."""
        click.echo(ready_text(ready))

    def progress(self, progress: Progress | None) -> None:
        """See `Reporter`."""
        if progress is None:
            if self._bar is not None:
                self._bar.stop()
            self._bar = self._phase = None
            return
        files = f"{progress.done_files:,}"
        if progress.total_files:
            files += f"/{progress.total_files:,}"
        if self._bar is None or self._phase is not progress.phase:
            self.progress(None)
            self._bar, self._phase = self._make_bar(), progress.phase
            self._task = self._bar.add_task(progress.phase.value, total=None, files=files)
            self._bar.start()
        self._bar.update(
            self._task,
            completed=progress.done_bytes,
            total=progress.total_bytes or None,
            files=files,
        )

    def warning(self, message: str) -> None:
        """See `Reporter`."""
        self._console.print(f"warning: {printable(message)}", markup=False, highlight=False)

    def _make_bar(self) -> bars.Progress:
        return bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.DownloadColumn(),
            bars.TextColumn("{task.fields[files]} files", markup=False),
            bars.TransferSpeedColumn(),
            bars.TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )


def ready_text(ready: Ready) -> str:
    """The one line that says that the node runs; scripts wait for it."""
    path = printable(ready.path)
    return f"ready: {path}  device {ready.device[:SHORT]}  listening on {ready.listening}"


def _fields(ready: Ready) -> dict[str, object]:
    return {
        "path": ready.path,
        "device": ready.device,
        "listening": ready.listening,
        "joined": ready.joined,
    }
