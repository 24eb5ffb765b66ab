"""Real power cuts, by the hundred: folder and index lie on an ext4 whose plug is pulled.

Ben's node lives on that disk, Anna's beside it in memory. Both save, rename and delete files of
their own all the time, some of Ben's with fsync and some without, and Anna changes a few bytes of a
large file, which is changed in place on Ben's disk. In the middle of that, at an operation drawn by
chance, the power goes; after the mount the node starts again, and may lose power while it recovers.
Anna gets Ben's entries the moment they are committed, so what is gone after a cut is gone too late.

After every cut, before anything starts:

- what Ben saved with fsync is there, and so is what was published of the rest: no empty file, none
  torn, none missing;
- the index is sound and knows every entry that Anna has got.

Every so often both finish undisturbed, and then the trees are equal, Anna's files are as she saved
them, `.shoal/tmp` is empty, and history holds what it lists.

`make power-cuts` does a thousand, and some dozens under real processes.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crdt.ids import FolderId
from node.blocks.manifest import Walk
from node.files.faulty import Crash, Fault, FaultPlan
from node.files.memory import MemoryFileSystem
from node.files.port import StatKind
from node.history.policy import Policy
from node.index.database import open_database
from node.sync.describe import Job, describe_all
from node.sync.observed import Described
from tests.support.crashes import PATCH_SIZE_MIN, CountingDatabase, Mortal
from tests.support.power import LoopDisk, loop_disk
from tests.support.processes import Device, free_port
from tests.support.real_disks import PlainDisk, RealClock
from tests.support.trees import pause, wait_until_equal
from tests.support.two_folders import exchange, members

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

CUTS = int(os.environ.get("SHOAL_POWER_CUTS", "12"))
PROCESS_CUTS = int(os.environ.get("SHOAL_POWER_CUTS_PROCESSES", "4"))
SEED = int(os.environ.get("SHOAL_SEED", "20261121"))
CHECK_EVERY = 15  # cuts
HISTORY_SIZE = 20_000_000  # bytes that history may take on Ben's device
FILES_MAX = 12  # of each person
OPERATIONS_MAX = 260  # in which a life ends; most are over sooner


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(loop_disk(tmp_path))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no loop mounts here: {error}")
        yield made


class PeoplesDisk(PlainDisk):
    """With what people see on it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.root = root

    def snapshot(self) -> dict[str, bytes | str | None]:
        """As `MemoryFileSystem.snapshot`."""
        found: dict[str, bytes | str | None] = {}
        for path in self.root.rglob("*"):
            found[str(path.relative_to(self.root))] = None if path.is_dir() else path.read_bytes()
        return found


class CutPlan(FaultPlan):
    """Where the process stops, the power goes."""

    disk: LoopDisk

    def run(self, *args: Any, **kwargs: Any) -> Any:
        before = self.crashed
        try:
            return super().run(*args, **kwargs)
        except Crash:
            if not before:
                self.disk.cut()
            raise


class Ben(Mortal):
    """The device whose power goes."""

    def __init__(self, seed: int, disk: LoopDisk) -> None:
        self.disk = disk
        (disk.path / "folder").mkdir()
        super().__init__(seed, self._open_disk(), RealClock())
        self._open_index()

    def open(self, folder: FolderId, bootstrap: Iterable[bytes] = ()) -> None:
        """See `Box`."""
        super().open(folder, bootstrap)
        self.history.policy = Policy(share=0, size=HISTORY_SIZE)

    async def _live(self, saves: Callable[[], None]) -> None:
        await super()._live(saves)
        await self.sealed.adopt()
        await self.history.tidy()  # the power may go in it as well

    def _open_disk(self) -> MemoryFileSystem:
        return PeoplesDisk(self.disk.path / "folder")  # type: ignore[return-value]

    def _open_index(self) -> None:
        index = open_database(self.disk.path / "home" / "index.sqlite")
        self.database = CountingDatabase(index.connection)

    def make_plan(self, faults: list[Fault]) -> FaultPlan:
        """See `Mortal`."""
        plan = CutPlan(faults)
        plan.disk = self.disk
        return plan

    async def live(
        self, *, until: int | None = None, saves: Callable[[], None] = lambda: None
    ) -> bool:
        """See `Mortal`."""
        before = self.disk.cuts
        try:
            return await super().live(until=until, saves=saves)
        except (Exception, BaseExceptionGroup):
            if self.disk.cuts == before:
                raise
            return False  # whatever a process without a disk ends of

    def come_back(self) -> None:
        """The power is back: mount, and open everything again."""
        self.database.connection.close()
        self.fs.close()
        self.disk.restore()
        self.fs = self._open_disk()
        self._open_index()
        self.open(self.folder.id, self.folder.roster_entries)


class Person:
    """Saves, renames and deletes files in a directory of their own."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.chance = random.Random(seed)
        self.files: dict[str, bytes] = {}  # as last saved, by path
        self._number = 0

    def content(self) -> bytes:
        """Never the same twice."""
        self._number += 1
        size = self.chance.choice([20, 300, 3_000, 9_000, 70_000, 200_000])
        return b"%s %d " % (self.name.encode(), self._number) + self.chance.randbytes(size)

    def new_path(self) -> str:
        self._number += 1
        return f"{self.name}/file {self._number}"

    def draw(self) -> tuple[str, str]:
        """What to do next, and to which file."""
        paths = sorted(self.files)
        if len(paths) < 4:
            return "save", self.new_path()
        what = self.chance.choice(["save", "save", "save new", "rename", "delete"])
        if what == "save new" and len(paths) < FILES_MAX:
            return "save", self.new_path()
        return what.split()[0], self.chance.choice(paths)


class AnnaAtWork(Person):
    """Her disk forgets nothing."""

    def __init__(self, box: Mortal) -> None:
        super().__init__("anna", SEED)
        self.box = box
        box.fs.mkdir("anna")
        self.big = bytearray(self.chance.randbytes(PATCH_SIZE_MIN + 200_000))
        box.fs.write_file("anna/big", bytes(self.big))

    def act(self) -> None:
        fs = self.box.fs
        what, path = self.draw()
        match what:
            case "rename":
                target = self.new_path()
                fs.rename(path, target)
                self.files[target] = self.files.pop(path)
            case "delete":
                fs.unlink(path)
                del self.files[path]
            case _:
                self.files[path] = self.content()
                fs.write_file("anna/saving", self.files[path])
                fs.replace("anna/saving", path)
        if self.chance.random() < 0.3:
            place = self.chance.randrange(len(self.big) - 8)
            self.big[place : place + 8] = self.chance.randbytes(8)
            fs.write_file("anna/big", bytes(self.big))

    def expected(self) -> dict[str, object]:
        return {"anna": None, "anna/big": bytes(self.big), **self.files}


class BenAtWork(Person):
    """Saves with fsync, or without; knows what a cut may take."""

    def __init__(self, root: Path, digest_of: Any) -> None:
        super().__init__("ben", SEED + 1)
        self._root = root
        self._digest_of = digest_of
        self._loose: dict[str, list[bytes | None]] = {}  # what may be there as well, without fsync
        self.torn = 0
        (root / "ben").mkdir()

    def act(self) -> None:
        """Something durable, or something that is not."""
        sure = self.chance.random() < 0.5
        what, path = self.draw()
        before = self.files.get(path)
        match what:
            case "rename":
                target = self.new_path()
                (self._root / path).rename(self._root / target)
                self.files[target] = self.files.pop(path)
                self._note(path, before, sure)
                self._note(target, None, sure)
            case "delete":
                (self._root / path).unlink()
                del self.files[path]
                self._note(path, before, sure)
            case _:
                self._save(path, sure)
                self._note(path, before, sure)
        if sure:
            os.sync()  # a rename without it may take what came before along
            self._loose.clear()

    def _save(self, path: str, sure: bool) -> None:
        self.files[path] = self.content()
        whole, saving = self._root / path, self._root / "ben" / "saving"
        with saving.open("wb", buffering=0) as file:
            file.write(self.files[path])
            if sure:
                os.fsync(file.fileno())
        saving.replace(whole)

    def _note(self, path: str, before: bytes | None, sure: bool) -> None:
        if not sure:
            self._loose.setdefault(path, []).append(before)

    def look(self, published: dict[str, bytes]) -> None:
        """After a cut: is all there that was sure, or that others know of? Then that is so.

        Args:
            published: The digests of what others got of these files.
        """
        found = {f"ben/{path.name}": path.read_bytes() for path in (self._root / "ben").iterdir()}
        found.pop("ben/saving", None)
        for path in sorted(found.keys() | self.files.keys() | self._loose.keys()):
            now, wanted = found.get(path), self.files.get(path)
            if now == wanted:
                continue
            assert path in self._loose, f"{path} was durable and is {_short(now)}"
            if wanted is not None and published.get(path) == self._digest_of(wanted):
                raise AssertionError(f"{path} was published and is {_short(now)} after the cut")
            self.torn += now is not None and now not in self._loose[path]
        with contextlib.suppress(FileNotFoundError):
            (self._root / "ben" / "saving").unlink()
        self.files = found
        self._loose.clear()
        os.sync()


def _short(data: bytes | None) -> str:
    return "gone" if data is None else f"{len(data)} bytes ({data[:20]!r})"


class Desk:
    """Both devices and both people."""

    def __init__(self, disk: LoopDisk) -> None:
        self.chance = random.Random(SEED + 2)
        clock = RealClock()
        self.anna = Mortal(1, MemoryFileSystem(clock=clock.wall_ns), clock)
        self.ben = Ben(2, disk)
        members([self.anna, self.ben])
        self.at_anna = AnnaAtWork(self.anna)
        self.at_ben = BenAtWork(disk.path / "folder", self.digest)
        self.operations = 0
        self.versions = 0  # in history

    def digest(self, data: bytes) -> bytes:
        scratch = MemoryFileSystem()
        scratch.write_file("f", data)
        (found,) = describe_all(scratch, [Job("f", StatKind.FILE)], self.anna.folder.block_key)
        assert isinstance(found, Described)
        return found.digest

    def published(self) -> dict[str, bytes]:
        """What Anna knows of Ben's files."""
        tree = self.anna.folder.tree
        found: dict[str, bytes] = {}
        for item in tree.all_items():
            row = tree.row(item)
            parent = None if row is None else tree.row(row.parent)
            if row is not None and parent is not None and parent.name == "ben":
                found[f"ben/{row.name}"] = row.content.digest
        return found

    async def live_until_the_power_goes(self) -> None:
        for _ in range(self.chance.randint(1, 3)):
            self.at_anna.act()
        with contextlib.suppress(AssertionError):
            await self.anna.live()  # it may want blocks that Ben's device has yet to serve
        # Whatever is committed is sent at once.
        self.ben.database.on_commit = lambda: self.anna.take_from(self.ben)
        at = self.chance.randint(1, OPERATIONS_MAX)
        if await self.ben.live(until=at, saves=self.work_at_ben):
            self.ben.disk.cut()
        self.operations += self.ben.plan.operations
        self.ben.come_back()
        known = self.anna.folder.have[self.ben.identity.device]
        assert self.ben.folder.have[self.ben.identity.device] >= known, "it forgot what it had sent"
        self.at_ben.look(self.published())

    def work_at_ben(self) -> None:
        for _ in range(self.chance.randint(0, 3)):
            self.at_ben.act()

    async def finish(self) -> None:
        """Undisturbed, until all is the same."""
        with self.ben.database.transaction() as index:
            index.execute("DELETE FROM afterlooks")  # as after an hour: history may be tidied
        for _ in range(6):
            assert await self.ben.live()
            assert await self.anna.live()
            exchange(self.anna, self.ben)
            if not self.anna.folder.pending and not self.ben.folder.pending:
                break
        tree = self.ben.tree()
        assert tree == self.anna.tree()
        mine = {path: what for path, what in tree.items() if path.split("/")[0] == "anna"}
        assert mine == self.at_anna.expected()
        theirs = {path: what for path, what in tree.items() if path.startswith("ben/")}
        assert theirs == self.at_ben.files
        assert set(tree) == {*mine, *theirs, "ben"}, "something was left beside the files"
        assert not self.ben.contents(below=".shoal/tmp/")
        await self.check_history()

    async def check_history(self) -> None:
        """It holds what it lists, without anybody's help."""
        kept, others = self.ben.history.rows.all(), self.ben.others
        self.ben.others = []
        for row in kept:
            if row.content is not None and row.content.manifest is not None:
                walk = Walk(row.content.manifest, row.size)
                while (wanted := walk.wants()) is not None:
                    walk.feed(await self.ben.node(wanted))
                for ref, _ in walk.blocks():
                    await self.ben.block(ref, transfer_size=row.size)
        self.ben.others = others
        self.versions = len(kept)
        rows = [row for row in kept if row.file is not None]
        jobs = [Job(str(row.file), StatKind.FILE) for row in rows]
        key = self.ben.folder.block_key
        for row, found in zip(rows, describe_all(self.ben.fs, jobs, key), strict=True):
            assert isinstance(found, Described), f"{row.path} in history: {found}"
            assert found.digest == row.digest, f"{row.path} in history is not what it was"


async def test_the_power_goes_at_any_moment(disk: LoopDisk) -> None:
    print(f"seed {SEED}")
    desk = Desk(disk)
    await desk.finish()
    began = time.monotonic()
    while disk.cuts < CUTS:
        await desk.live_until_the_power_goes()
        if disk.cuts % CHECK_EVERY == 0:
            await desk.finish()
    await desk.finish()
    took_s = time.monotonic() - began
    print(
        f"{disk.cuts} cuts in {took_s:.0f} s, {desk.operations / disk.cuts:.0f} operations a life; "
        f"{desk.versions} versions in history; "
        f"{desk.at_ben.torn} saves without fsync were torn before anybody was told of them"
    )


# --- real processes -------------------------------------------------------------------------------


@pytest.mark.kills
def test_the_power_goes_under_real_nodes(disk: LoopDisk, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    ports = free_port(), free_port()
    options = [
        ("--no-lan", "--listen", f"127.0.0.1:{port}", "--peer", f"127.0.0.1:{other}")
        for port, other in (ports, ports[::-1])
    ]
    anna = Device(tmp_path, "anna", options=options[0])
    ben = Device(disk.path, "ben", options=options[1])
    ben.log = tmp_path / "ben.log"
    saved: dict[str, bytes] = {}  # by either; ben's with fsync, hers are not on that disk
    with anna, ben:
        anna.up()
        ben.join(anna.invite())
        for cut in range(PROCESS_CUTS):
            deadline = time.monotonic() + chance.uniform(0.05, 1.5)
            while time.monotonic() < deadline:
                device = chance.choice([anna, ben])
                name = f"{device.name}'s file {chance.randrange(40)}"
                saved[name] = b"%d " % cut + chance.randbytes(chance.choice([50, 5000, 150_000]))
                save_durably(device.directory, name, saved[name])
                pause(0.01)
            disk.cut()
            ben.kill()
            disk.restore()
            for name in (name for name in saved if name.startswith("ben")):
                assert (ben.directory / name).read_bytes() == saved[name], f"{name}, cut {cut}"
            ben.up()
        anna.wait(devices=2)
        ben.wait(devices=2)
        wait_until_equal(
            anna.directory, ben.directory, expected=lambda tree: len(tree) == len(saved)
        )
        for name, data in saved.items():
            assert (ben.directory / name).read_bytes() == data
        print(f"{disk.cuts} cuts under real nodes, {len(saved)} files")


def save_durably(directory: Path, name: str, data: bytes) -> None:
    """As a careful program does."""
    saving = directory / ".shoal-tmp-saving"
    with saving.open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
    saving.rename(directory / name)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)
