"""How real programs save, on one device, while two others follow and edit files of their own.

Whatever the order of system calls: all trees end equal, with what the program meant to write, what
the others wrote meanwhile, and nothing of its passing helpers. Programs that are installed here do
it themselves; of the others the sequence of calls is replayed, and the test's name says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes import Device, members
from tests.support.trees import Tree, pause, snapshot, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TURNS = int(os.environ.get("SHOAL_EDITOR_TURNS", "1"))  # `make test-editors` takes more
SAVES = 5 * TURNS  # of one document in a row, each some 30 ms after the other
STEP_TIMEOUT_S = 60.0
GIT_FILES = 1_000


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Device, ...]]:
    with members(tmp_path_factory.mktemp("editors"), "anna", "ben", "cleo") as devices:
        yield devices


class Room:
    """A directory of the folder for one test: anna's program works in it, the others beside it."""

    def __init__(self, crowd: tuple[Device, ...], name: str) -> None:
        self.devices = crowd
        self.name = name
        self.path = crowd[0].directory / name
        self.path.mkdir()
        self.ready()

    def ready(self) -> None:
        """All have what there is."""
        self._equal(lambda tree: self.name in tree)

    @contextlib.contextmanager
    def others_write(self) -> Iterator[None]:
        """Ben and cleo save files of their own as fast as people with many windows do."""
        done = threading.Event()
        written: dict[Path, str] = {}

        def work(device: Device) -> None:
            place = device.directory / f"{self.name} by {device.name}"
            place.mkdir()
            number = 0
            while not done.wait(0.02):
                path = place / f"note {number % 5}.txt"
                text = f"{device.name} wrote this as number {number}\n" * (number % 300)
                path.write_text(text)
                written[path.relative_to(device.directory)] = text
                number += 1

        threads = [threading.Thread(target=work, args=(one,)) for one in self.devices[1:]]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            done.set()
            for thread in threads:
                thread.join()
        meant = snapshot(self.path)
        self._equal(lambda tree: self._within(tree) == meant)
        for path, text in written.items():
            for device in self.devices:
                assert (device.directory / path).read_text() == text, (device.name, path)
        conflicts = [path for path in snapshot(self.devices[0].directory) if "(conflict" in path]
        assert not conflicts, "nobody touched what another one wrote"

    def _within(self, tree: Tree) -> Tree:
        start = f"{self.name}/"
        return {path[len(start) :]: node for path, node in tree.items() if path.startswith(start)}

    def _equal(self, expected: Callable[[Tree], object]) -> None:
        roots = [device.directory for device in self.devices]
        try:
            wait_until_equal(*roots, timeout_s=STEP_TIMEOUT_S, expected=expected)
        except AssertionError as error:
            tails = "\n".join(f"--- {one.name}\n{one.tail(15)}" for one in self.devices)
            raise AssertionError(f"{error}\n{tails}") from None

    def copy_from(self, device: Device, target: Path) -> Path:
        """What `device` has of this room, to be looked at without touching it."""
        shutil.copytree(device.directory / self.name, target, symlinks=True)
        return target


def text_of(number: int) -> str:
    return "".join(f"save {number}, line {line}\n" for line in range(200 * (number % 3 + 1)))


def save_often(room: Room, name: str, save: Callable[[Path, str], None]) -> None:
    """Save one document again and again while the others write; only it remains."""
    path = room.path / name
    with room.others_write():
        for number in range(SAVES):
            save(path, text_of(number))
            pause(0.03)
    assert [one.name for one in room.path.iterdir()] == [name]
    for device in room.devices:
        assert (device.directory / room.name / name).read_text() == text_of(SAVES - 1)


# --- vim ------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("vim") is None, reason="vim is not installed")
@pytest.mark.parametrize(
    "options",
    [
        "backupcopy=no writebackup",  # renames the old file, writes a new one, removes the old
        "backupcopy=yes writebackup",  # copies the old file, truncates it and writes
        "nowritebackup",  # truncates and writes
    ],
)
def test_vim(crowd: tuple[Device, ...], tmp_path: Path, options: str) -> None:
    room = Room(crowd, f"vim {options}")

    def save(path: Path, text: str) -> None:
        source = tmp_path / "buffer.txt"
        source.write_text(text)
        keys = [f"set {options} swapfile directory=.", f"%!cat {source}"]
        commands = [part for key in keys for part in ("-c", key)]
        subprocess.run(
            ["vim", "-u", "NONE", "-i", "NONE", "-E", "-s", *commands, "-c", "wq", path.name],
            cwd=path.parent,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    save_often(room, "document.txt", save)


# --- sed, ed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [("-i",), ("-i.bak",)])
def test_sed(crowd: tuple[Device, ...], options: tuple[str, ...]) -> None:
    room = Room(crowd, f"sed {options[0]}")
    for number in range(40):
        (room.path / f"{number}.txt").write_text(f"old {number}\n" * (number * 20))
    room.ready()
    with room.others_write():
        files = [str(path) for path in room.path.glob("*.txt")]
        for old, new in (("old", "newer"), ("newer", "newest")):
            subprocess.run(["sed", *options, f"s/{old}/{new}/", *files], check=True)
    for device in room.devices:
        place = device.directory / room.name
        assert (place / "7.txt").read_text() == "newest 7\n" * 140
        assert (place / "7.txt.bak").exists() == (options == ("-i.bak",))


# --- programs that are not installed: their calls -------------------------------------------------


def test_replay_of_vs_code_which_truncates_and_writes(crowd: tuple[Device, ...]) -> None:
    """Its `files` service: open with O_TRUNC, write, fdatasync, close."""

    def save(path: Path, text: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.write(fd, text.encode())
        os.fdatasync(fd)
        os.close(fd)

    save_often(Room(crowd, "vs code"), "module.ts", save)


def test_replay_of_vs_code_with_atomic_saves(crowd: tuple[Device, ...]) -> None:
    """For its own settings: beside the file with another ending, then renamed over it."""

    def save(path: Path, text: str) -> None:
        temporary = path.with_name(f"{path.name}.vsctmp")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.write(fd, text.encode())
        os.fdatasync(fd)
        os.close(fd)
        temporary.rename(path)

    save_often(Room(crowd, "vs code atomic"), "settings.json", save)


def test_replay_of_libreoffice_with_its_lock_and_osl_tmp(
    crowd: tuple[Device, ...], tmp_path: Path
) -> None:
    """A lock file; the new document elsewhere; the old one renamed to `*.osl-tmp`, the new one
    copied to its name, the old one removed.
    """

    def save(path: Path, text: str) -> None:
        lock = path.with_name(f".~lock.{path.name}#")
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        os.write(fd, b",anna,host,21.11.2026 08:00,file:///home/anna/.config/libreoffice/4;")
        os.close(fd)
        new = tmp_path / "lu3051z4e.tmp"
        new.write_text(text)
        old = path.with_name(f"{path.name}.osl-tmp")
        if path.exists():
            path.rename(old)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with new.open("rb") as source:
            while part := source.read(4096):
                os.write(fd, part)
        os.close(fd)
        path.chmod(0o644)
        stamps = new.stat()
        os.utime(path, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))
        old.unlink(missing_ok=True)
        lock.unlink()

    save_often(Room(crowd, "libreoffice"), "letter.odt", save)


def test_replay_of_delete_and_create(crowd: tuple[Device, ...]) -> None:
    """What simple editors do."""

    def save(path: Path, text: str) -> None:
        path.unlink(missing_ok=True)
        with path.open("x") as file:
            for line in text.splitlines(keepends=True):
                file.write(line)

    save_often(Room(crowd, "delete and create"), "note.txt", save)


@pytest.mark.parametrize("how", ["rename", "in place", "delayed"])
def test_replay_of_rsync(crowd: tuple[Device, ...], how: str) -> None:
    """`.name.XXXXXX` and rename; `--inplace`; `--delay-updates` by way of `.~tmp~`."""
    room = Room(crowd, f"rsync {how}")

    def write(path: Path, data: bytes, flags: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
        for start in range(0, len(data), 32768):
            os.write(fd, data[start : start + 32768])
        os.ftruncate(fd, len(data))
        os.fchmod(fd, 0o644)
        os.close(fd)

    def receive(names: dict[str, bytes], mtime_s: int) -> None:
        delayed = room.path / ".~tmp~"
        for name, data in names.items():
            path = room.path / name
            if how == "in place":
                write(path, data, 0)
                os.utime(path, (mtime_s, mtime_s))
                continue
            temporary = path.with_name(f".{name}.Xa9fQ1")
            write(temporary, data, os.O_EXCL)
            os.utime(temporary, (mtime_s, mtime_s))
            if how == "delayed":
                delayed.mkdir(mode=0o700, exist_ok=True)
                temporary.rename(delayed / name)
            else:
                temporary.rename(path)
        if how == "delayed":
            for name in names:
                (delayed / name).rename(room.path / name)
            delayed.rmdir()

    with room.others_write():
        for turn in range(2 * TURNS):
            names = {
                f"file {number}": bytes([turn + 1]) * (number * 5_000 + turn)
                for number in range(30)
            }
            receive(names, 1_700_000_000 + turn)
            pause(0.05)
    for device in room.devices:
        place = device.directory / room.name
        assert len(list(place.iterdir())) == 30
        assert (place / "file 29").read_bytes() == bytes([2 * TURNS]) * (29 * 5_000 + 2 * TURNS - 1)


# --- git ------------------------------------------------------------------------------------------


def git(place: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_AUTHOR_NAME": "anna",
        "GIT_AUTHOR_EMAIL": "anna@example.org",
        "GIT_COMMITTER_NAME": "anna",
        "GIT_COMMITTER_EMAIL": "anna@example.org",
    }
    done = subprocess.run(
        ["git", *arguments], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"git {arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def make_repository(place: Path) -> None:
    """1,000 files on `main`; on `other` a fifth is edited, moved or gone, and some are new."""
    git(place, "init", "-q", "-b", "main")
    for number in range(GIT_FILES):
        path = place / f"part {number % 20}" / f"module {number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"def function_{number}():\n    return {number}\n" * (1 + number % 30))
    git(place, "add", "-A")
    git(place, "commit", "-q", "-m", "first")
    git(place, "checkout", "-q", "-b", "other")
    for number in range(0, GIT_FILES, 5):
        path = place / f"part {number % 20}" / f"module {number}.py"
        match number % 3:
            case 0:
                path.write_text(f"def function_{number}():\n    return 'other'\n" * 40)
            case 1:
                path.rename(path.with_name(f"moved {number}.py"))
            case _:
                path.unlink()
    for number in range(50):
        (place / f"new {number}.py").write_text(f"new = {number}\n")
    git(place, "add", "-A")
    git(place, "commit", "-q", "-m", "second")


def test_git_checkouts_and_commits(crowd: tuple[Device, ...], tmp_path: Path) -> None:
    room = Room(crowd, "git")
    make_repository(room.path)
    with room.others_write():
        for number in range(2 * TURNS):
            git(room.path, "checkout", "-q", "main")
            (room.path / "diary.txt").write_text(f"day {number}\n" * 100)
            git(room.path, "add", "-A")
            git(room.path, "commit", "-q", "-m", f"day {number}")
            git(room.path, "checkout", "-q", "other")
        git(room.path, "merge", "-q", "-m", "merged", "main")
        git(room.path, "gc", "-q")
    head = git(room.path, "rev-parse", "HEAD")
    for device in room.devices[1:]:
        copy = room.copy_from(device, tmp_path / device.name)
        git(copy, "fsck", "--full", "--strict")
        assert git(copy, "rev-parse", "HEAD") == head
        assert git(copy, "status", "--porcelain") == "", "the work tree is what the commit says"
        assert (copy / "diary.txt").read_text() == f"day {2 * TURNS - 1}\n" * 100
        git(copy, "checkout", "-q", "main")


# --- SQLite ---------------------------------------------------------------------------------------


def check_database(path: Path) -> int:
    """Its rows; fails if the database is damaged."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (count,) = database.execute("SELECT count(*) FROM notes").fetchone()
        assert isinstance(count, int)
        return count


def write_notes(database: sqlite3.Connection, seconds: float) -> int:
    """Commit rows for a while, some of them large, some of them gone again."""
    over = threading.Event()
    timer = threading.Timer(seconds, over.set)
    timer.start()
    number = 0
    while not over.is_set():
        with database:
            database.execute("INSERT INTO notes VALUES (?, ?)", (number, os.urandom(number % 9000)))
            if number % 7 == 0:
                database.execute("DELETE FROM notes WHERE id = ?", (number // 2,))
        number += 1
    timer.join()
    (count,) = database.execute("SELECT count(*) FROM notes").fetchone()
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_sqlite_under_write_load(crowd: tuple[Device, ...], tmp_path: Path, mode: str) -> None:
    room = Room(crowd, f"sqlite {mode}")
    path = room.path / "notes.db"
    with room.others_write(), contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA journal_mode={mode}")
        database.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text BLOB)")
        count = write_notes(database, 0.6 * TURNS)
    check_copies(room, tmp_path, count)


def test_sqlite_that_is_still_open(crowd: tuple[Device, ...], tmp_path: Path) -> None:
    """Its `-shm` is written through a mapping, which no watcher hears of and no stamp tells."""
    room = Room(crowd, "sqlite open")
    with contextlib.closing(sqlite3.connect(room.path / "notes.db")) as database:
        database.execute("PRAGMA journal_mode=wal")
        database.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text BLOB)")
        with room.others_write():
            count = write_notes(database, 0.5 * TURNS)
        check_copies(room, tmp_path, count)  # the journal is there, the newest rows only in it


def check_copies(room: Room, tmp_path: Path, count: int) -> None:
    for device in room.devices[1:]:
        copy = room.copy_from(device, tmp_path / device.name)
        assert check_database(copy / "notes.db") == count
