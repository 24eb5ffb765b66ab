"""What people do on a device's disk, and what they saw when they did it.

Everything happens at once, as between two operations of the node, but for `slow`, which writes
piece by piece. Files are picked among those that are there, by a number between 0 and 1.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import trio

from node.files.memory import MemoryFileSystem
from node.files.memory_file import MemoryFile
from node.files.port import split_parent
from simulations.ledger import Ledger

Content = bytes | str | None


@dataclass(slots=True)
class Person:
    """Somebody at one device."""

    name: str
    fs: MemoryFileSystem
    ledger: Ledger
    chance: random.Random
    note: Callable[[str], None]
    nursery: trio.Nursery

    def act(self, verb: str, args: tuple[float | int | str | bool, ...]) -> None:
        """Do it; what the disk refuses is not done."""
        what, where, size, durable = args
        action = getattr(self, f"_{verb}")
        try:
            action(what, float(where), int(size), bool(durable))
        except OSError as error:
            self.note(f"{self.name} cannot {verb}: {error.strerror}")

    # --- looking --------------------------------------------------------------------------------

    def tree(self) -> dict[str, Content]:
        """What people see here."""
        return {
            path: content
            for path, content in self.fs.snapshot().items()
            if path != ".shoal" and not path.startswith(".shoal/")
        }

    def files(self) -> list[str]:
        """All regular files."""
        return sorted(path for path, what in self.tree().items() if isinstance(what, bytes))

    def directories(self) -> list[str]:
        """All directories; not the root."""
        return sorted(path for path, what in self.tree().items() if what is None)

    def _pick(self, among: list[str], number: float) -> str:
        if not among:
            raise FileNotFoundError(2, "there is nothing")
        return among[int(number * len(among))]

    # --- saving ---------------------------------------------------------------------------------

    def _content(self, path: str, size: int, mark: bytes) -> bytes:
        if path.endswith("bin"):
            return b"\xff" + mark + self.chance.randbytes(size)
        words = [
            b"%d words about nothing" % self.chance.randrange(10**6) for _ in range(size // 30)
        ]
        return b"\n".join([b"begin", *words, mark, b"end"]) + b"\n"

    def _write(self, path: str, data: bytes, how: float, *, durable: bool) -> None:
        there = self._there(path)
        if there and how < 0.5:
            temporary = f"{split_parent(path)[0] or '.'}/~{self.name}.tmp".removeprefix("./")
            self.fs.write_file(temporary, data)
            if durable:
                self._sync(temporary)
            self.fs.replace(temporary, path)
        else:
            self.fs.write_file(path, data)
            if durable:
                self._sync(path)
        if durable:
            self.fs.fsync_directory(split_parent(path)[0])

    def _sync(self, path: str) -> None:
        with self.fs.open_write(path) as file:
            file.fsync()

    def _there(self, path: str) -> bool:
        try:
            self.fs.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _make_parents(self, path: str, *, durable: bool) -> None:
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            parent = "/".join(parts[:depth])
            if not self._there(parent):
                self.fs.mkdir(parent)
            if durable:
                self.fs.fsync_directory(split_parent(parent)[0])

    def _save(self, path: object, how: float, size: int, durable: bool) -> None:
        """Save a new content at a path, whether or not there is a file."""
        place = str(path)
        self._make_parents(place, durable=durable)
        before = self.fs.read_file(place) if self._there(place) else None
        mark = self.ledger.new_mark()
        data = self._content(place, size, mark)
        self._write(place, data, how, durable=durable)
        self.ledger.saved(self.name, place, mark, data, before, durable=durable)
        self.note(f"{self.name} saves {mark.decode()} as {place}, {len(data)} bytes")

    def _edit(self, what: float, how: float, size: int, durable: bool) -> None:
        """Change a line of a text, or a few bytes of something else."""
        path = self._pick(self.files(), what)
        before = self.fs.read_file(path)
        mark = self.ledger.new_mark()
        if before.startswith(b"\xff") or b"\n" not in before:
            data = self._content("bin", size, mark)
        else:
            lines = before.split(b"\n")
            lines[int(how * len(lines))] = mark
            data = b"\n".join(lines)
        self._write(path, data, how, durable=durable)
        self.ledger.saved(self.name, path, mark, data, before, durable=durable)
        self.note(f"{self.name} edits {path}: {mark.decode()}, {len(data)} bytes")

    def _append(self, what: float, _where: float, _size: int, durable: bool) -> None:
        path = self._pick(self.files(), what)
        with self.fs.open_write(path) as file:
            self._add(path, file, durable=durable)

    def _add(self, path: str, file: MemoryFile, *, durable: bool) -> None:
        size = file.stat().size
        if not file.stat().links:
            return  # somebody deleted it here: what is written now goes nowhere
        before = file.read_at(0, size)
        mark = self.ledger.new_mark()
        file.write_at(size, mark + b"\n")
        if durable:
            file.fsync()
        data = before + mark + b"\n"
        self.ledger.saved(self.name, path, mark, data, before, durable=False)
        self.note(f"{self.name} appends {mark.decode()} to {path}")

    def _slow(self, what: float, where: float, _size: int, _durable: bool) -> None:
        """A program that keeps a file open and writes to it again and again."""
        path = self._pick(self.files(), what)
        file = self.fs.open_write(path)

        async def write() -> None:
            try:
                for _ in range(3):
                    await trio.sleep(where * 0.5)
                    self._add(f"{path}, open for long,", file, durable=False)
            except OSError:
                pass  # a power cut

        self.nursery.start_soon(write)

    # --- names ----------------------------------------------------------------------------------

    def _free(self, directory: str, name: str) -> str:
        path = f"{directory}/{name}" if directory else name
        if self._there(path):
            raise FileExistsError(17, "there is something")
        return path

    def _rename(self, what: float, where: float, _size: int, _durable: bool) -> None:
        path = self._pick(self.files(), what)
        names = ("x.txt", "y.txt", "z.md", "n.bin", "m.bin", "other.txt")
        self._move_file(path, self._free(split_parent(path)[0], names[int(where * len(names))]))

    def _move(self, what: float, where: float, _size: int, _durable: bool) -> None:
        path = self._pick(self.files(), what)
        directory = self._pick(["", *self.directories()], where)
        self._move_file(path, self._free(directory, split_parent(path)[1]))

    def _move_file(self, path: str, target: str) -> None:
        self.fs.rename(path, target)
        self.ledger.moved(self.name, self.fs.read_file(target))
        self.note(f"{self.name} renames {path} to {target}")

    def _swap(self, what: float, where: float, _size: int, _durable: bool) -> None:
        one, other = self._pick(self.files(), what), self._pick(self.files(), where)
        if one == other:
            return
        self.fs.rename(one, "swapped")
        self.fs.rename(other, one)
        self.fs.rename("swapped", other)
        for path in (one, other):
            self.ledger.moved(self.name, self.fs.read_file(path))
        self.note(f"{self.name} swaps {one} and {other}")

    def _replace(self, what: float, where: float, _size: int, _durable: bool) -> None:
        """`mv` one file over another one."""
        one, other = self._pick(self.files(), what), self._pick(self.files(), where)
        if one == other:
            return
        gone = self.fs.read_file(other)
        self.fs.replace(one, other)
        self.ledger.removed(self.name, other, gone)
        self.ledger.moved(self.name, self.fs.read_file(other))
        self.note(f"{self.name} moves {one} over {other}")

    def _copy(self, what: float, where: float, _size: int, _durable: bool) -> None:
        path = self._pick(self.files(), what)
        directory = self._pick(["", *self.directories()], where)
        target = self._free(directory, f"copy of {split_parent(path)[1]}"[-60:])
        data = self.fs.read_file(path)
        self.ledger.blur(data)
        self.fs.write_file(target, data)
        self.note(f"{self.name} copies {path} to {target}")

    def _mkdir(self, what: float, where: float, _size: int, _durable: bool) -> None:
        directory = self._pick(["", *self.directories()], what)
        path = self._free(directory, "abc"[int(where * 3)])
        self.fs.mkdir(path)
        self.note(f"{self.name} makes directory {path}")

    def _movedir(self, what: float, where: float, size: int, _durable: bool) -> None:
        path = self._pick(self.directories(), what)
        directory = self._pick(["", *self.directories()], where)
        name = split_parent(path)[1] if size else "abcd"[int(where * 4)]
        target = self._free(directory, name)
        self.fs.rename(path, target)
        self.note(f"{self.name} moves directory {path} to {target}")

    # --- deleting -------------------------------------------------------------------------------

    def _unlink(self, path: str) -> None:
        content = self.tree()[path]
        self.fs.unlink(path)
        if isinstance(content, bytes):
            self.ledger.removed(self.name, path, content)

    def _delete(self, what: float, _where: float, _size: int, _durable: bool) -> None:
        path = self._pick(self.files(), what)
        self._unlink(path)
        self.note(f"{self.name} deletes {path}")

    def _recreate(self, what: float, how: float, size: int, durable: bool) -> None:
        """Delete a file and make another one in its place."""
        path = self._pick(self.files(), what)
        self._unlink(path)
        self.note(f"{self.name} deletes {path} and")
        self._save(path, how, size, durable)

    def _deltree(self, what: float, _where: float, _size: int, _durable: bool) -> None:
        top = self._pick(self.directories(), what)
        below = [path for path in self.tree() if path.startswith(f"{top}/")]
        for path in sorted(below, key=lambda path: path.count("/"), reverse=True):
            if self.tree()[path] is None:
                self.fs.rmdir(path)
            else:
                self._unlink(path)
        self.fs.rmdir(top)
        self.note(f"{self.name} deletes directory {top} with {len(below)} things in it")

    # --- other ----------------------------------------------------------------------------------

    def _touch(self, what: float, _where: float, _size: int, _durable: bool) -> None:
        path = self._pick(self.files(), what)
        self.fs.set_metadata(path, mtime_ns=self.fs.now_ns())
        self.ledger.moved(self.name, self.fs.read_file(path))
        self.note(f"{self.name} touches {path}")

    def _chmod(self, what: float, _where: float, _size: int, _durable: bool) -> None:
        path = self._pick(self.files(), what)
        self.fs.set_metadata(path, executable=not self.fs.lstat(path).executable)
        self.ledger.moved(self.name, self.fs.read_file(path))
        self.note(f"{self.name} changes the mode of {path}")

    def _link(self, what: float, where: float, _size: int, _durable: bool) -> None:
        """A symlink, from time to time to somewhere outside."""
        directory = self._pick(["", *self.directories()], what)
        path = self._free(directory, f"link{int(where * 3)}")
        self.fs.symlink("../../outside" if where < 0.3 else "x.txt", path)
        self.note(f"{self.name} makes symlink {path}")
