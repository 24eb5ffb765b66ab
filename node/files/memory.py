"""A file system in memory that forgets like a real one: for tests and simulations.

Everything happens at once and in one thread. What an operation did is *volatile* until it is
synced, and `power_cut` takes volatile things away as a power cut may:

- A file's content and stamps are kept by its own `fsync` or by `sync`. Otherwise the old content
  survives, or the new one, or a mixture by pages, under the old stamps or the new.
- Names are kept by `fsync_directory` of their directory, or by `sync`. An operation that nobody
  synced may be lost, and then so is every later one on the same directories: each directory comes
  back as it was at some moment, and a rename between two directories is never half done. That is
  what journalling file systems give, and no more: a file's own `fsync` does not keep its name.

Deterministic: time comes from a clock that is passed in, chance from `power_cut`'s argument, and
listings come in order of creation.

`listeners` are called with the path of each change, as a watcher would be. The methods after
`close` are what people do, without the port's manners.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import random
from collections.abc import Callable, Iterator
from typing import Final

from node.files.memory_file import MemoryFile
from node.files.memory_inode import DEVICE, Change, Inode, Journal
from node.files.port import (
    NAME_BYTES_MAX,
    Entry,
    ExchangeUnsupportedError,
    NotRegularFileError,
    Stat,
    StatKind,
    join,
    split_parent,
    split_path,
)
from node.files.portable_names import Personality, possible

ROOT_NUMBER: Final = 2  # as on ext4
CAPACITY_DEFAULT: Final = 2**40  # bytes


class MemoryFileSystem:
    """`FileSystem` without a disk."""

    def __init__(
        self,
        *,
        clock: Callable[[], int] | None = None,
        granularity_ns: int = 1,
        personality: Personality | None = None,
        exchanges: bool = True,
        clones: bool = False,
        capacity: int = CAPACITY_DEFAULT,
    ) -> None:
        """An empty root.

        Args:
            clock: Nanoseconds since 1970; by default one that ticks 1 ms at each look.
            granularity_ns: Stamps are rounded down to it, as on disks with a coarse clock.
            personality: How names fold.
            exchanges: False makes `exchange` raise ExchangeUnsupportedError.
            clones: False makes `clone` fail.
            capacity: Bytes that files may hold in all.
        """
        ticks = itertools.count(1_700_000_000 * 10**9, 10**6)
        self._clock = clock or (lambda: next(ticks))
        self._granularity_ns = granularity_ns
        self.personality = personality or Personality()
        self._exchanges = exchanges
        self._clones = clones
        self.capacity = capacity
        self.listeners: list[Callable[[str], None]] = []
        self.generation = 0  # grows with each power cut; older handles are dead
        self._numbers = itertools.count(ROOT_NUMBER)
        self._freed: list[int] = []  # a heap: the lowest is given out again first, as ext4 does
        self._inodes: dict[int, Inode] = {}
        self._used = 0
        self._root = self._new(StatKind.DIRECTORY)
        self._root.links = 1
        self._journal = Journal(ROOT_NUMBER)

    def scandir(self, path: str) -> list[Entry]:
        """See `FileSystem`."""
        directory = self._directory(path)
        return [Entry(name, self._stat(number)) for name, number in directory.entries.values()]

    def lstat(self, path: str) -> Stat:
        """See `FileSystem`."""
        return self._find(path).stat(DEVICE) if path else self._root.stat(DEVICE)

    def open_read(self, path: str) -> MemoryFile:
        """See `FileSystem`."""
        return MemoryFile(self, self._regular(path))

    def create(self, path: str, *, executable: bool = False) -> MemoryFile:
        """See `FileSystem`."""
        inode = self._make(path, StatKind.FILE)
        inode.mode = inode.saved_mode = 0o755 if executable else 0o644
        return MemoryFile(self, inode)

    def open_write(self, path: str) -> MemoryFile:
        """See `FileSystem`."""
        return MemoryFile(self, self._regular(path))

    def open_alone(self, path: str) -> MemoryFile:
        """See `FileSystem`."""
        inode = self._regular(path)
        if inode.opened:
            raise _error(errno.EAGAIN, path)
        return MemoryFile(self, inode)

    def clone(self, source: str, target: str) -> None:
        """See `FileSystem`."""
        inode = self._regular(source)
        if not self._clones:
            raise _error(errno.EOPNOTSUPP, target)
        with self.create(target) as file:
            file.write_at(0, bytes(inode.data))

    def mkdir(self, path: str, *, private: bool = False) -> None:
        """See `FileSystem`."""
        self._make(path, StatKind.DIRECTORY).mode = 0o700 if private else 0o755

    def rmdir(self, path: str) -> None:
        """See `FileSystem`."""
        inode = self._find(path)
        if inode.kind is not StatKind.DIRECTORY:
            raise _error(errno.ENOTDIR, path)
        if inode.entries:
            raise _error(errno.ENOTEMPTY, path)
        self._remove(path, inode)

    def unlink(self, path: str) -> None:
        """See `FileSystem`."""
        inode = self._find(path)
        if inode.kind is StatKind.DIRECTORY:
            raise _error(errno.EISDIR, path)
        self._remove(path, inode)

    def symlink(self, target: str, path: str) -> None:
        """See `FileSystem`."""
        if not target:
            raise _error(errno.ENOENT, path)
        self._make(path, StatKind.SYMLINK).target = target

    def readlink(self, path: str) -> str:
        """See `FileSystem`."""
        inode = self._find(path)
        if inode.kind is not StatKind.SYMLINK:
            raise _error(errno.EINVAL, path)
        return inode.target

    def rename(self, source: str, target: str) -> None:
        """See `FileSystem`."""
        inode = self._find(source)
        if self._lookup(target) is not None:
            raise _error(errno.EEXIST, source, target)
        self._refuse_inside(source, target)
        self._relink([(source, None), (target, inode)])

    def exchange(self, first: str, second: str) -> None:
        """See `FileSystem`."""
        one, other = self._find(first), self._find(second)
        self._refuse_inside(first, second)
        self._refuse_inside(second, first)
        if not self._exchanges:
            raise ExchangeUnsupportedError(first)
        self._relink([(first, other), (second, one)])

    def set_metadata(
        self, path: str, *, mtime_ns: int | None = None, executable: bool | None = None
    ) -> None:
        """See `FileSystem`."""
        with self.open_write(path) as file:
            file.set_metadata(mtime_ns=mtime_ns, executable=executable)

    def fsync_directory(self, path: str) -> None:
        """See `FileSystem`."""
        self._journal.sync_directory(self._directory(path).number)

    def sync(self) -> None:
        """See `FileSystem`."""
        self._journal.sync_all()
        for inode in self._inodes.values():
            inode.save()
        self._forget_unreachable()

    def free_bytes(self) -> int:
        """See `FileSystem`."""
        return max(0, self.capacity - self._used)

    def identity(self) -> tuple[int, int]:
        """See `FileSystem`."""
        return (DEVICE, ROOT_NUMBER)

    def is_attached(self) -> bool:
        """See `FileSystem`."""
        return True

    def close(self) -> None:
        """See `FileSystem`. The tree stays; the next user goes on with it."""

    def power_cut(self, chance: random.Random) -> None:
        """Lose what a power cut may take, and start again: open handles are dead."""
        self.generation += 1
        names = self._journal.power_cut(chance)
        for inode in self._inodes.values():
            inode.entries = {}
            inode.links = 0
            inode.power_cut(chance)
        for number, entries in names.items():
            self._inodes[number].entries = dict(entries)
            for _, child in entries.values():
                self._inodes[child].links += 1
                self._inodes[child].parent = number
        self._root.links = 1
        self._forget_unreachable()

    def write_file(self, path: str, data: bytes) -> None:
        """Save as a simple editor does: into the same file, or a new one."""
        file = self.create(path) if self._lookup(path) is None else self.open_write(path)
        with file:
            file.truncate(0)
            file.write_at(0, data)

    def read_file(self, path: str) -> bytes:
        """The whole content."""
        return bytes(self._regular(path).data)

    def replace(self, source: str, target: str) -> None:
        """Rename over whatever file lies at `target`, as editors save."""
        if self._lookup(target) is not None:
            self.unlink(target)
        self.rename(source, target)

    def link(self, source: str, target: str) -> None:
        """A hard link."""
        inode = self._regular(source)
        if self._lookup(target) is not None:
            raise _error(errno.EEXIST, source, target)
        inode.links += 1
        self._relink([(target, inode)])

    def rot(self, path: str, offset: int, data: bytes) -> None:
        """Other bytes under the same stat, as a failing disk gives, or a memory mapping."""
        self._regular(path).data[offset : offset + len(data)] = data

    def snapshot(self) -> dict[str, bytes | str | None]:
        """Every path with its content: bytes, a symlink's target, or None for a directory."""
        return dict(self._walk("", self._root))

    def now_ns(self) -> int:
        """The time, as coarse as this disk keeps it."""
        now = self._clock()
        return now - now % self._granularity_ns

    def resize(self, inode: Inode, size: int) -> None:
        """Make room for `inode`'s data to become `size` bytes, or raise ENOSPC."""
        grown = size - len(inode.data)
        if grown > 0 and self._used + grown > self.capacity:
            raise _error(errno.ENOSPC)
        self._used += grown
        if grown > 0:
            inode.data.extend(bytes(grown))
        else:
            del inode.data[size:]

    def notify(self, inode: Inode) -> None:
        """Tell the listeners where a file that was written lies."""
        if self.listeners and inode.links:
            names: list[str] = []
            while inode is not self._root:
                parent = self._inodes[inode.parent]
                names += [
                    name for name, number in parent.entries.values() if number == inode.number
                ]
                inode = parent
            self._tell("/".join(reversed(names)))

    def _tell(self, path: str) -> None:
        for listener in list(self.listeners):
            listener(path)

    def _walk(self, path: str, directory: Inode) -> Iterator[tuple[str, bytes | str | None]]:
        for name, number in directory.entries.values():
            inode, below = self._inodes[number], join(path, name)
            if inode.kind is StatKind.DIRECTORY:
                yield below, None
                yield from self._walk(below, inode)
            else:
                yield below, bytes(inode.data) if inode.kind is StatKind.FILE else inode.target

    def _new(self, kind: StatKind) -> Inode:
        number = heapq.heappop(self._freed) if self._freed else next(self._numbers)
        inode = self._inodes[number] = Inode(number, kind, self.now_ns())
        return inode

    def _stat(self, number: int) -> Stat:
        return self._inodes[number].stat(DEVICE)

    def _directory(self, path: str) -> Inode:
        inode = self._root
        for name in split_path(path):
            found = inode.entries.get(self.personality.key(name))
            if found is None:
                raise _error(errno.ENOENT, path)
            inode = self._inodes[found[1]]
            if inode.kind is not StatKind.DIRECTORY:
                raise _error(errno.ENOTDIR, path)
        return inode

    def _lookup(self, path: str) -> Inode | None:
        """What lies at `path`; its parent must exist."""
        parent, name = split_parent(path)
        directory = self._directory(parent)
        if len(name.encode("utf-8", "surrogateescape")) > NAME_BYTES_MAX:
            raise _error(errno.ENAMETOOLONG, path)
        found = directory.entries.get(self.personality.key(name))
        return self._inodes[found[1]] if found else None

    def _find(self, path: str) -> Inode:
        inode = self._lookup(path)
        if inode is None:
            raise _error(errno.ENOENT, path)
        return inode

    def _regular(self, path: str) -> Inode:
        inode = self._find(path)
        if inode.kind is not StatKind.FILE:
            number = errno.EISDIR if inode.kind is StatKind.DIRECTORY else errno.ELOOP
            raise NotRegularFileError(number, "no regular file", path)
        return inode

    def _make(self, path: str, kind: StatKind) -> Inode:
        if self._lookup(path) is not None:
            raise _error(errno.EEXIST, path)
        if not possible(split_parent(path)[1], self.personality):
            raise _error(errno.EINVAL, path)
        inode = self._new(kind)
        inode.links = 1
        self._relink([(path, inode)])
        return inode

    def _remove(self, path: str, inode: Inode) -> None:
        inode.links -= 1
        self._relink([(path, None)])
        if inode.links == 0:
            self._used -= len(inode.data)

    def _refuse_inside(self, source: str, target: str) -> None:
        """A directory cannot move into itself."""
        moving, directory = self._find(source), self._directory(split_parent(target)[0])
        if moving.number in self._chain(directory):
            raise _error(errno.EINVAL, source, target)

    def _chain(self, directory: Inode) -> set[int]:
        """A directory and all above it."""
        chain = {directory.number}
        while directory is not self._root:
            directory = self._inodes[directory.parent]
            chain.add(directory.number)
        return chain

    def _relink(self, links: list[tuple[str, Inode | None]]) -> None:
        """Let each path lead to its inode, or nowhere, in one step of the journal."""
        now, changes, touched = self.now_ns(), [], set()
        for path, inode in links:
            parent, name = split_parent(path)
            directory, key = self._directory(parent), self.personality.key(name)
            former = directory.entries.get(key)
            touched.add(directory.number)
            for moved in filter(None, (inode, self._inodes[former[1]] if former else None)):
                if moved.kind is StatKind.DIRECTORY:
                    # Comes back in order with what happened inside it, so nothing is left in a
                    # directory that is gone, and with all moves around it: no cycles.
                    touched.add(moved.number)
                    if len(links) > 1:
                        touched |= self._chain(directory)
            name = former[0] if former and inode else self.personality.stored(name)
            changes.append(Change(directory, key, (name, inode.number) if inode else None))
            directory.mtime_ns = directory.ctime_ns = now
            if inode is not None:
                inode.ctime_ns = now
        for change, (_, inode) in zip(changes, links, strict=True):
            change.apply()
            if inode is not None:
                inode.parent = change.directory.number
        self._journal.add(touched, changes)
        for path, _ in links:
            self._tell(path)

    def _forget_unreachable(self) -> None:
        """Drop what neither a name nor a possible power cut leads to."""
        reached, queue = {ROOT_NUMBER}, [self._root]
        while queue:
            for _, number in queue.pop().entries.values():
                if number not in reached:
                    reached.add(number)
                    queue.append(self._inodes[number])
        for number in self._inodes.keys() - reached:
            del self._inodes[number]
            heapq.heappush(self._freed, number)
        self._journal.keep(reached)
        self._used = sum(len(inode.data) for inode in self._inodes.values())


def _error(number: int, path: str | None = None, other: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path, None, other)
