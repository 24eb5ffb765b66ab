"""The Watcher port: which paths may have changed. A hint, never the truth.

What comes out of it costs at most a needless look; what fails to come out is found by the hourly
full scan. A watcher that loses events says `Rescan`; one that cannot watch everything says
`Limited`, and the caller scans more often.

`DiskWatcher` uses inotify on Linux (`node.files.inotify`: 0 % idle, about 1 ms) and watchfiles
elsewhere (it polls its own thread every 10 ms: 0.2 % of a core, 20 ms). `FakeWatcher` hears what
happens in a `MemoryFileSystem`.

Each is one `serve` coroutine. Nothing is delayed here: the first change is sent at once, and
whatever happens while the receiver is busy becomes the next batch. A watcher that fails is started
again with a growing delay, and says `Rescan` each time.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import trio
from watchfiles import Change, awatch

from node.files import inotify
from node.files.layout import is_ours_path
from node.files.memory import MemoryFileSystem

logger = logging.getLogger("shoal.watcher")

PENDING_MAX: Final = 100_000  # paths; beyond, one full scan is cheaper than looking at each
RESTART_DELAY_MIN_S: Final = 1.0
RESTART_DELAY_MAX_S: Final = (
    60.0  # a folder on a disk that was unplugged comes back within a minute
)
FALLBACK_STEP_MS: Final = 10  # 5 ms would be 6 ms of latency for twice the idle CPU
FALLBACK_DEBOUNCE_MS: Final = 50
FALLBACK_TIMEOUT_MS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Dirty:
    """Look at these paths. A directory's stands for its own entry, not for what is in it."""

    paths: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rescan:
    """Events were lost: scan everything."""

    reason: str


@dataclass(frozen=True, slots=True)
class Limited:
    """Some directories are not watched: scan everything more often. `message` tells what to do."""

    message: str


WatchEvent = Dirty | Rescan | Limited


class Watcher(Protocol):
    """Watches one folder."""

    async def serve(
        self,
        send: trio.MemorySendChannel[WatchEvent],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Send events until cancelled or the receiver is closed; closes `send`.

        Reports `started` once watching: a full scan that begins after it misses nothing.
        """
        ...


class Hints:
    """What is to be sent; merged while the receiver is busy."""

    def __init__(self) -> None:
        self._paths: set[str] = set()
        self._rescan: str | None = None
        self._limited: str | None = None
        self._wakeup = trio.Event()

    def add(self, *paths: str) -> None:
        """These changed."""
        if paths and self._rescan is None:
            self._paths.update(paths)
            if len(self._paths) > PENDING_MAX:
                self.rescan(f"more than {PENDING_MAX} changes are waiting")
            self._wakeup.set()

    def rescan(self, reason: str) -> None:
        """Anything may have changed; single paths do not matter any more."""
        self._rescan = reason
        self._paths = set()
        self._wakeup.set()

    def limited(self, message: str) -> None:
        """Not everything is watched."""
        self._limited = message
        self._wakeup.set()

    async def serve(self, send: trio.MemorySendChannel[WatchEvent]) -> None:
        """Send until the receiver is closed."""
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await self._wakeup.wait()
                self._wakeup = trio.Event()
                if self._limited is not None:
                    message, self._limited = self._limited, None
                    await send.send(Limited(message))
                if self._rescan is not None:
                    reason, self._rescan = self._rescan, None
                    await send.send(Rescan(reason))
                if self._paths:
                    paths, self._paths = frozenset(self._paths), set()
                    await send.send(Dirty(paths))


class DiskWatcher:
    """`Watcher` for a folder on this machine."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        skip: Callable[[str], bool] = lambda _: False,
        native: bool = inotify.AVAILABLE,
    ) -> None:
        """Watch nothing yet.

        Args:
            root: The folder; a symlink is followed once.
            skip: Ignored directories (relative paths) need no watches. Called in worker threads.
            native: False uses watchfiles even on Linux (tests).
        """
        self._root = os.path.realpath(root)
        self._skip = skip
        self._native = native
        self._running: trio.CancelScope | None = None
        self._lost: str | None = None  # why the next start has to say Rescan

    async def serve(
        self,
        send: trio.MemorySendChannel[WatchEvent],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See `Watcher`. Reports `started` also when the first attempt failed; a Rescan follows."""
        async with send, trio.open_nursery() as nursery:
            hints = Hints()
            ready = trio.Event()

            async def deliver() -> None:
                await hints.serve(send)
                nursery.cancel_scope.cancel()

            async def announce() -> None:
                await ready.wait()
                task_status.started()

            nursery.start_soon(deliver)
            nursery.start_soon(announce)
            await self._keep_watching(hints, ready)

    def restart_nowait(self, reason: str) -> None:
        """Build the watches anew, since what `skip` says has changed; a Rescan follows."""
        self._lost = reason
        if self._running is not None:
            self._running.cancel()

    async def _keep_watching(self, hints: Hints, ready: trio.Event) -> None:
        delay_s = RESTART_DELAY_MIN_S
        while True:
            began = trio.current_time()
            try:
                with trio.CancelScope() as self._running:
                    await (self._watch_native if self._native else self._watch)(hints, ready)
            except Exception as error:  # noqa: BLE001 - whatever it is, the folder must be watched
                logger.warning("watching %s failed, trying again: %s", self._root, error)
                if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENOSPC):
                    hints.limited(inotify.LIMIT_HINT)
                self._lost = f"watching failed: {error}"
                hints.rescan(self._lost)  # and once more when it works again
                ready.set()
                if trio.current_time() - began > RESTART_DELAY_MAX_S:
                    delay_s = RESTART_DELAY_MIN_S
                await trio.sleep(delay_s)
                delay_s = min(delay_s * 2, RESTART_DELAY_MAX_S)

    def _watching(self, hints: Hints, ready: trio.Event) -> None:
        """All watches stand: what happens from now on is heard."""
        ready.set()
        if self._lost is not None:
            hints.rescan(self._lost)
            self._lost = None

    async def _watch_native(self, hints: Hints, ready: trio.Event) -> None:
        """Returns to be started anew."""
        tree = inotify.InotifyTree(self._root, skip=self._skip)
        limit_told = False
        try:
            await trio.to_thread.run_sync(tree.settle)
            tree.take_changed()  # all of it
            self._watching(hints, ready)
            while not tree.overflowed:
                if tree.limit_reached and not limit_told:
                    limit_told = True
                    hints.limited(inotify.LIMIT_HINT)
                await trio.lowlevel.wait_readable(tree.fd)
                tree.read()
                if tree.root_gone:
                    raise FileNotFoundError(errno.ENOENT, "the folder was moved", self._root)
                if tree.unsettled:
                    await trio.to_thread.run_sync(tree.settle)
                hints.add(*tree.take_changed())
            self._lost = "more changes at once than the kernel's queue holds"
        finally:
            tree.close()

    async def _watch(self, hints: Hints, ready: trio.Event) -> None:
        """By watchfiles, which swallows overflows: the regular full scan has to find those."""
        prefix = os.path.join(self._root, "")

        def wanted(_: Change, path: str) -> bool:
            return not is_ours_path(path.removeprefix(prefix).replace(os.sep, "/"))

        changes = awatch(
            self._root,
            watch_filter=wanted,
            debounce=FALLBACK_DEBOUNCE_MS,
            step=FALLBACK_STEP_MS,
            rust_timeout=FALLBACK_TIMEOUT_MS,
            yield_on_timeout=True,
            ignore_permission_denied=True,
        )
        async with contextlib.aclosing(changes):
            async for batch in changes:  # the first one comes within a second, empty or not
                self._watching(hints, ready)
                if any(path == self._root for _, path in batch):
                    await trio.to_thread.run_sync(os.listdir, self._root)  # raises if it is gone
                paths = (path.removeprefix(prefix).replace(os.sep, "/") for _, path in batch)
                hints.add(*(path for path in paths if path != self._root))


class FakeWatcher:
    """`Watcher` over a `MemoryFileSystem`, for simulations."""

    def __init__(self, fs: MemoryFileSystem) -> None:
        self._fs = fs
        self._hints: Hints | None = None
        self.deaf = False  # True: events are lost without a word, as the worst watcher would

    def lose_events(self, reason: str = "overflow") -> None:
        """Say `Rescan`."""
        if self._hints is not None:
            self._hints.rescan(reason)

    async def serve(
        self,
        send: trio.MemorySendChannel[WatchEvent],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See `Watcher`."""
        hints = self._hints = Hints()

        def hear(path: str) -> None:
            if not self.deaf and not is_ours_path(path):
                hints.add(path)

        self._fs.listeners.append(hear)
        task_status.started()
        try:
            async with send:
                await hints.serve(send)
        finally:
            self._fs.listeners.remove(hear)
