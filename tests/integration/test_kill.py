"""`kill -9` of either node, at 50 random moments, while people work on both sides.

Two writers never stop: each makes, edits, renames, moves and deletes files of its own, and both
save, and now and then delete, the same few shared files. Two killers give each node one short life
after the other, some too short to start. In the end both trees are equal, and:

- of its own files, each writer finds exactly what it last saved, where it put it;
- of the shared files, every save that nobody replaced is there, as the file or as a conflict copy.

A save replaces what it *took out of the folder* in one atomic exchange, so that the writer knows
what it replaced; just reading before writing would miss what arrives between the two.

Files are binary, so that no text merge makes one of two.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import Device, two_members
from tests.support.trees import contents, pause, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.kills, pytest.mark.timeout(240)]

SEED = 20_261_121
KILLS_EACH = 25
LIFE_MAX_S = 2.2  # from the start of the process; it takes about one second to be ready
CONVERGE_TIMEOUT_S = 60.0
OWN_FILES_MAX = 60
SHARED_FILES = 6
SHARED_EVERY = 24  # one action in so many is on a shared file: each may leave a copy for good
ACTION_S = 0.015  # between two actions of one writer
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


def test_killed_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    with two_members(tmp_path) as (anna, ben):
        for number in range(SHARED_FILES):
            path = anna.directory / "shared" / f"{number}.bin"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"\0at the start of %d" % number)
        both = anna.directory, ben.directory
        wait_until_equal(*both, expected=lambda tree: len(tree) == SHARED_FILES + 1)
        writers = [
            Writer(device, tmp_path / f"{device.name}-desk", SEED + number)
            for number, device in enumerate((anna, ben))
        ]
        killers = [Killer(device, SEED + 10 + n) for n, device in enumerate((anna, ben))]
        began = time.monotonic()
        run_beside(writers=[one.work for one in writers], killers=[one.work for one in killers])
        print(f"{2 * KILLS_EACH} kills in {time.monotonic() - began:.1f} s, {actions(writers)}")
        for device in (anna, ben):
            device.up()
        try:
            wait_until_equal(
                *both, timeout_s=CONVERGE_TIMEOUT_S, expected=lambda _: settled(writers)
            )
            anna.wait(devices=2)
            ben.wait(devices=2)
        except AssertionError as error:
            tails = f"--- anna\n{anna.tail()}\n--- ben\n{ben.tail()}"
            raise AssertionError(f"{error}\n{problems(writers)}\n{tails}") from None
        print(f"equal again after {time.monotonic() - began:.1f} s")
        wait_until_equal(*both)
        assert not problems(writers)


class Killer:
    """Gives a node one life after the other, each ended in the middle of something."""

    def __init__(self, device: Device, seed: int) -> None:
        self._device = device
        self._random = random.Random(seed)

    def work(self, stop: threading.Event) -> None:
        pause(self._random.uniform(0, LIFE_MAX_S))
        self._device.kill()
        for _ in range(KILLS_EACH - 1):
            if stop.is_set():
                return
            self._device.live(self._random.uniform(0.1, LIFE_MAX_S))


class Writer:
    """One person, and what that person expects to find."""

    def __init__(self, device: Device, desk: Path, seed: int) -> None:
        self.name = device.name
        self.root = device.directory
        self.own = self.root / self.name
        self.own.mkdir()
        self._desk = desk
        desk.mkdir()
        self._random = random.Random(seed)
        self._number = 0
        self._directories = 0
        self.files: dict[Path, bytes] = {}
        self.saved: set[bytes] = set()  # in shared files
        self.replaced: set[bytes] = set()

    @property
    def actions(self) -> int:
        return self._number

    def work(self, stop: threading.Event) -> None:
        while not stop.wait(ACTION_S):
            self._number += 1
            if self._number % SHARED_EVERY == 0:
                self._act_on_shared()
            else:
                self._act_on_own()

    # --- own files

    def _act_on_own(self) -> None:
        paths = list(self.files)
        what = self._random.random()
        if len(paths) < 5 or (what < 0.3 and len(paths) < OWN_FILES_MAX):
            self._save(self._new_path(), self._random.choice([replace, in_place]))
        elif what < 0.6:
            self._save(self._random.choice(paths), self._random.choice([replace, in_place]))
        elif what < 0.75:
            path, target = self._random.choice(paths), self._new_path()
            path.rename(target)
            self.files[target] = self.files.pop(path)
        elif what < 0.8:
            self._rename_directory(self._random.choice(paths).parent)
        else:
            path = self._random.choice(paths)
            path.unlink()
            del self.files[path]

    def _save(self, path: Path, how: Callable[[Path, bytes], None]) -> None:
        data = self._content()
        how(path, data)
        self.files[path] = data

    def _rename_directory(self, directory: Path) -> None:
        if directory == self.own:
            return
        target = self._new_directory()
        directory.rename(target)
        for path in [path for path in self.files if path.parent == directory]:
            self.files[target / path.name] = self.files.pop(path)

    def _new_path(self) -> Path:
        directories = [self.own, *{path.parent for path in self.files}]
        directory = self._random.choice(directories)
        if len(directories) < 6 and self._random.random() < 0.2:
            directory = self._new_directory()
            directory.mkdir()
        return directory / f"{self._number}.bin"

    def _new_directory(self) -> Path:
        self._directories += 1
        return self.own / f"directory {self._directories}"

    # --- shared files

    def _act_on_shared(self) -> None:
        path = self.root / "shared" / f"{self._random.randrange(SHARED_FILES)}.bin"
        draft = self._desk / "draft"
        if self._random.random() < 0.15:
            try:
                path.rename(draft)
            except FileNotFoundError:
                return
            self.replaced.add(draft.read_bytes())
            return
        data = self._content()
        write(draft, data)
        self.saved.add(data)
        if exchange_or_create(draft, path):
            self.replaced.add(draft.read_bytes())

    def _content(self) -> bytes:
        size = self._random.choice([10, 500, 3_000, 10_000, 150_000])
        return b"\0%s %d " % (self.name.encode(), self._number) + self._random.randbytes(size)


# --- saving ---------------------------------------------------------------------------------------


def write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, data: bytes) -> None:
    """As editors save."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary, data)
    temporary.replace(path)


in_place = write

_renameat2 = ctypes.CDLL(None, use_errno=True).renameat2


def exchange_or_create(draft: Path, path: Path) -> bool:
    """Put `draft` at `path` and take out what was there; False if there was nothing."""
    while True:
        if rename_with(draft, path, RENAME_EXCHANGE):
            return True
        if rename_with(draft, path, RENAME_NOREPLACE):
            return False


def rename_with(source: Path, target: Path, flags: int) -> bool:
    """False if the target is missing, or is in the way."""
    if _renameat2(-100, os.fsencode(source), -100, os.fsencode(target), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.ENOENT, errno.EEXIST}:
        return False
    raise OSError(number, os.strerror(number), str(target))


# --- what must hold -------------------------------------------------------------------------------


def settled(writers: list[Writer]) -> bool:
    return not problems(writers)


def problems(writers: list[Writer]) -> list[str]:
    """What is not as the writers left it, on either side."""
    found = []
    replaced = set[bytes]().union(*(writer.replaced for writer in writers))
    for root in (writer.root for writer in writers):
        there = contents(root)
        for writer in writers:
            wanted = {root / p.relative_to(writer.root): data for p, data in writer.files.items()}
            own = {path for path in (root / writer.name).rglob("*") if path.is_file()}
            for path, data in wanted.items():
                if path not in own:
                    where = "it is elsewhere" if data in there else "LOST"
                    found.append(f"{path} is missing; {where}")
                elif path.read_bytes() != data:
                    where = "it is elsewhere" if data in there else "LOST"
                    found.append(
                        f"{path} holds {path.read_bytes()[:20]!r}, not {data[:20]!r}; {where}"
                    )
            found += [f"{path} is there, nobody left it there" for path in own - wanted.keys()]
            lost = writer.saved - replaced - there
            found += [f"LOST in {root}: {data[:20]!r} in a shared file" for data in lost]
    return found


def actions(writers: list[Writer]) -> str:
    return " and ".join(f"{one.actions} actions by {one.name}" for one in writers)


def run_beside(
    *,
    writers: list[Callable[[threading.Event], None]],
    killers: list[Callable[[threading.Event], None]],
) -> None:
    """Run all at once, until the killers are done; whatever one raises ends them all."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def run(work: Callable[[threading.Event], None]) -> None:
        try:
            work(stop)
        except BaseException as error:
            failures.append(error)
            stop.set()

    threads = {work: threading.Thread(target=run, args=(work,)) for work in (*writers, *killers)}
    for thread in threads.values():
        thread.start()
    for killer in killers:
        threads[killer].join()
    stop.set()
    for thread in threads.values():
        thread.join()
    for failure in failures:
        raise failure
