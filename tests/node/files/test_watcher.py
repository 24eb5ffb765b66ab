"""Every watcher reports what changed; the native one also keeps in step with moving directories."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from node.files import inotify, watcher
from node.files.memory import MemoryFileSystem
from node.files.watcher import (
    Dirty,
    DiskWatcher,
    FakeWatcher,
    Hints,
    Limited,
    Rescan,
    Watcher,
    WatchEvent,
)

Events = trio.MemoryReceiveChannel[WatchEvent]
native = pytest.mark.skipif(not inotify.AVAILABLE, reason="inotify is Linux' own")


@asynccontextmanager
async def watching(watched: Watcher) -> AsyncIterator[Events]:
    send, receive = trio.open_memory_channel[WatchEvent](0)
    async with trio.open_nursery() as nursery, receive:
        with trio.fail_after(20):
            await nursery.start(watched.serve, send)
            yield receive
        nursery.cancel_scope.cancel()


async def heard(events: Events, *paths: str) -> set[str]:
    """Wait until all of `paths` were reported; everything that was."""
    seen: set[str] = set()
    while not seen.issuperset(paths):
        event = await events.receive()
        assert isinstance(event, Dirty), event
        seen |= event.paths
    return seen


async def test_a_fake_one_hears_the_memory() -> None:
    fs = MemoryFileSystem()
    fake = FakeWatcher(fs)
    async with watching(fake) as events:
        fs.mkdir(".shoal")
        fs.mkdir("d")
        fs.write_file(".shoal/x", b"ours")
        fs.write_file("d/f", b"theirs")
        assert await heard(events, "d", "d/f") == {"d", "d/f"}
        fake.lose_events()
        assert isinstance(await events.receive(), Rescan)
        fake.deaf = True
        fs.unlink("d/f")
        fake.deaf = False
        fs.rename("d", "e")
        assert await heard(events, "d", "e") == {"d", "e"}
    assert not fs.listeners


@pytest.mark.slow
@pytest.mark.parametrize("is_native", [pytest.param(True, marks=native), False])
async def test_a_real_one_hears_the_disk(tmp_path: Path, is_native: bool) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / ".shoal").mkdir()
    async with watching(DiskWatcher(tmp_path, native=is_native)) as events:
        (tmp_path / ".shoal/x").write_bytes(b"ours")
        (tmp_path / "d/f").write_bytes(b"theirs")
        seen = await heard(events, "d/f")
        (tmp_path / "d/f").rename(tmp_path / "g")
        seen |= await heard(events, "d/f", "g")
        (tmp_path / "g").unlink()
        seen |= await heard(events, "g")
        assert seen <= {"d", "d/f", "g", ""}


@native
class TestNative:
    async def test_what_a_scan_looks_at(self, tmp_path: Path) -> None:
        (tmp_path / "f").touch()
        async with watching(DiskWatcher(tmp_path)) as events:
            (tmp_path / "f").chmod(0o755)
            assert await heard(events, "f") == {"f"}
            os.utime(tmp_path / "f", (1, 1))
            assert await heard(events, "f") == {"f"}
            (tmp_path / "f").read_bytes()
            (tmp_path / "link").symlink_to("nowhere")
            assert await heard(events, "link") == {"link"}
            odd = os.fsdecode(b"\xff\n")
            (tmp_path / odd).touch()
            assert await heard(events, odd) == {odd}

    async def test_a_new_tree_is_reported_whole_and_watched(self, tmp_path: Path) -> None:
        outside, folder = tmp_path / "outside", tmp_path / "folder"
        (outside / "a/b").mkdir(parents=True)
        (outside / "a/b/f").touch()
        folder.mkdir()
        async with watching(DiskWatcher(folder)) as events:
            (outside / "a").rename(folder / "a")
            await heard(events, "a", "a/b", "a/b/f")
            (folder / "a/b/g").touch()
            await heard(events, "a/b/g")

    async def test_a_renamed_directory_reports_itself_only(self, tmp_path: Path) -> None:
        (tmp_path / "a/b").mkdir(parents=True)
        for i in range(100):
            (tmp_path / f"a/b/{i}").touch()
        async with watching(DiskWatcher(tmp_path)) as events:
            (tmp_path / "a").rename(tmp_path / "z")
            assert await heard(events, "a", "z") == {"a", "z"}
            (tmp_path / "z/b/new").touch()
            assert await heard(events, "z/b/new") == {"z/b/new"}

    async def test_a_directory_that_left_is_not_watched(self, tmp_path: Path) -> None:
        outside, folder = tmp_path / "outside", tmp_path / "folder"
        (folder / "a/b").mkdir(parents=True)
        outside.mkdir()
        async with watching(DiskWatcher(folder)) as events:
            (folder / "a").rename(outside / "a")
            assert await heard(events, "a") == {"a"}
            (outside / "a/b/f").touch()
            (folder / "end").touch()
            assert await heard(events, "end") == {"end"}

    async def test_skipped_directories_are_not_watched(self, tmp_path: Path) -> None:
        (tmp_path / "skip/deep").mkdir(parents=True)
        ignored = {"skip"}
        watched = DiskWatcher(tmp_path, skip=lambda path: path in ignored)
        async with watching(watched) as events:
            (tmp_path / "skip/deep/f").touch()
            (tmp_path / "end").touch()
            assert await heard(events, "end") == {"end"}
            ignored.clear()
            watched.restart_nowait("rules changed")
            assert await events.receive() == Rescan("rules changed")
            (tmp_path / "skip/deep/g").touch()
            await heard(events, "skip/deep/g")

    async def test_a_full_watch_table(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a").mkdir()
        add_watch = inotify.InotifyTree._add_watch

        def add_few(self: inotify.InotifyTree, fd: int, mask: int) -> int:
            if len(self) == 1:
                self.limit_reached = True
                return -1
            return add_watch(self, fd, mask)

        monkeypatch.setattr(inotify.InotifyTree, "_add_watch", add_few)
        async with watching(DiskWatcher(tmp_path)) as events:
            event = await events.receive()
            assert isinstance(event, Limited)
            assert "max_user_watches" in event.message
            (tmp_path / "f").touch()  # what is watched stays so
            await heard(events, "f")

    async def test_an_overflow_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a").mkdir()
        read_events = inotify.InotifyTree._events

        def overflowing(self: inotify.InotifyTree) -> object:
            list(read_events(self))
            yield -1, inotify._Q_OVERFLOW, ""

        async with watching(DiskWatcher(tmp_path)) as events:
            with monkeypatch.context() as patch:
                patch.setattr(inotify.InotifyTree, "_events", overflowing)
                (tmp_path / "b").mkdir()
                await trio.testing.wait_all_tasks_blocked(0.05)
            event = await events.receive()
            assert isinstance(event, Rescan)
            (tmp_path / "b/f").touch()  # its creation was lost, and yet it is watched
            await heard(events, "b/f")

    async def test_a_folder_that_moves_away_and_comes_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watcher, "RESTART_DELAY_MIN_S", 0.001)
        folder = tmp_path / "folder"
        folder.mkdir()
        async with watching(DiskWatcher(folder)) as events:
            folder.rename(tmp_path / "elsewhere")
            assert isinstance(await events.receive(), Rescan)
            (tmp_path / "elsewhere").rename(folder)
            while True:  # each further attempt that failed said so
                (folder / "f").touch()
                (folder / "f").unlink()
                with trio.move_on_after(0.05):
                    event = await events.receive()
                    if event == Dirty(frozenset({"f"})):
                        break

    async def test_the_service_ends_with_its_receiver(self, tmp_path: Path) -> None:
        send, receive = trio.open_memory_channel[WatchEvent](0)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                await nursery.start(DiskWatcher(tmp_path).serve, send)
                receive.close()
                (tmp_path / "f").touch()

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(4))
    async def test_any_sequence_of_moves_keeps_watches_and_directories_in_step(
        self, tmp_path: Path, seed: int
    ) -> None:
        """After a storm, a file created in any directory is reported under its true path."""
        chance = random.Random(seed)
        tree = inotify.InotifyTree(str(tmp_path), skip=lambda _: False)
        try:
            tree.settle()
            for _ in range(40):
                for _ in range(chance.randrange(1, 8)):
                    _disturb(tmp_path, chance)
                await _drain(tree)
            directories = [Path(path) for path, _, _ in os.walk(tmp_path)]
            assert len(tree) == len(directories)
            for directory in directories:
                (directory / "probe").touch()
            changed = await _drain(tree)
            probes = {str((d / "probe").relative_to(tmp_path)) for d in directories}
            assert {path for path in changed if path.endswith("probe")} == probes
        finally:
            tree.close()


def _disturb(root: Path, chance: random.Random) -> None:
    directories = [Path(path) for path, _, _ in os.walk(root)]
    one, other = chance.choice(directories), chance.choice(directories)
    name = f"d{chance.randrange(6)}"
    act: Callable[[], object] = chance.choice(
        [
            (one / name).mkdir,
            lambda: (one / name / name).mkdir(parents=True),
            lambda: one.rename(other / name),
            lambda: exchange(one, other),
            lambda: shutil.rmtree(one / name),
        ]
    )
    with suppress(OSError):
        act()


def exchange(one: Path, other: Path) -> None:
    from node.files.syscalls import rename_exchange

    rename_exchange(str(one), str(other), first_fd=-100, second_fd=-100)


async def _drain(tree: inotify.InotifyTree) -> set[str]:
    """Read until the kernel has nothing more."""
    seen: set[str] = set()
    while True:
        tree.read()
        tree.settle()
        seen |= tree.take_changed()
        with trio.move_on_after(0.002) as scope:
            await trio.lowlevel.wait_readable(tree.fd)
        if scope.cancelled_caught:
            return seen


async def test_too_many_hints_become_a_rescan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "PENDING_MAX", 10)
    hints = Hints()
    send, receive = trio.open_memory_channel[WatchEvent](0)
    hints.add(*(f"f{i}" for i in range(11)))
    hints.add("g")
    hints.limited("limit")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hints.serve, send)
        assert await receive.receive() == Limited("limit")
        assert isinstance(await receive.receive(), Rescan)
        hints.add("h")
        assert await receive.receive() == Dirty(frozenset({"h"}))
        nursery.cancel_scope.cancel()
