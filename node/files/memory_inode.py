"""What `node.files.memory` is made of: inodes with a saved and a volatile half, and the journal."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from node.files.port import Stat, StatKind

PAGE_SIZE: Final = 4096  # bytes that reach the disk together
DEVICE: Final = 1
DIRECTORY_SIZE: Final = 4096
JOURNAL_MAX: Final = 1_000  # operations not yet written back; kernels let go after 30 s or less

Names = dict[str, tuple[str, int]]
"""A directory's entries: folded name -> (name, inode number)."""


@dataclass(slots=True)
class Inode:
    """A file, directory or symlink. `saved_*` is what the disk itself holds."""

    number: int
    kind: StatKind
    born_ns: int
    data: bytearray = field(default_factory=bytearray)
    target: str = ""
    entries: Names = field(default_factory=dict)
    mode: int = 0o644
    mtime_ns: int = 0
    ctime_ns: int = 0
    links: int = 0
    parent: int = 0  # the directory of its newest name
    dirty: bool = False  # something since the last fsync
    opened: int = 0  # handles
    saved_data: bytes = b""
    saved_mode: int = 0o644
    saved_mtime_ns: int = 0
    saved_ctime_ns: int = 0

    def __post_init__(self) -> None:
        self.mtime_ns = self.ctime_ns = self.born_ns
        self.saved_mtime_ns = self.saved_ctime_ns = self.born_ns

    @property
    def executable(self) -> bool:
        """By its owner; only files are."""
        return self.kind is StatKind.FILE and bool(self.mode & 0o100)

    def stat(self, device: int) -> Stat:
        """What lstat says."""
        size = len(self.data)
        if self.kind is StatKind.DIRECTORY:
            size = DIRECTORY_SIZE
        elif self.kind is StatKind.SYMLINK:
            size = len(self.target.encode("utf-8", "surrogateescape"))
        return Stat(
            self.kind,
            self.number,
            device,
            size,
            self.mtime_ns,
            self.ctime_ns,
            self.executable,
            self.links,
            (len(self.data) + 511) // 512,
            self.mode,
        )

    def save(self) -> None:
        """Everything since the last save is on the disk."""
        if self.dirty:
            self.saved_data = bytes(self.data)
            self.saved_mode = self.mode
            self.saved_mtime_ns, self.saved_ctime_ns = self.mtime_ns, self.ctime_ns
            self.dirty = False

    def power_cut(self, chance: random.Random) -> None:
        """Become what the disk holds after a power cut."""
        self.opened = 0
        if self.kind is not StatKind.FILE:
            return
        if bytes(self.data) != self.saved_data:
            fate = chance.choice(("old", "new", "torn"))
            if fate == "old":
                self.data = bytearray(self.saved_data)
            elif fate == "torn":
                self.data = _torn(self.saved_data, bytes(self.data), chance)
        if chance.random() < 0.5:
            self.mode = self.saved_mode
            self.mtime_ns, self.ctime_ns = self.saved_mtime_ns, self.saved_ctime_ns
        self.dirty = True
        self.save()


def _torn(old: bytes, new: bytes, chance: random.Random) -> bytearray:
    """Some pages of each; what neither ever wrote reads as zeros."""
    size = chance.randint(*sorted((len(old), len(new))))
    torn = bytearray(old[:size].ljust(size, b"\0"))
    for start in range(0, size, PAGE_SIZE):
        if chance.random() < 0.5:
            page = new[start : min(start + PAGE_SIZE, size)]
            torn[start : start + len(page)] = page
    return torn


@dataclass(frozen=True, slots=True)
class Change:
    """One name of one directory leads somewhere else (None: nowhere)."""

    directory: Inode
    key: str
    leads_to: tuple[str, int] | None

    def apply(self) -> None:
        """To the volatile half."""
        self.apply_to(self.directory.entries)

    def apply_to(self, entries: Names) -> None:
        """To any copy of the directory."""
        entries.pop(self.key, None)
        if self.leads_to is not None:
            entries[self.key] = self.leads_to


@dataclass(frozen=True, slots=True)
class _Operation:
    touched: frozenset[int]  # directories; two that share one keep their order
    changes: tuple[Change, ...]


class Journal:
    """The names on the disk, and the operations on them that it may not hold yet."""

    def __init__(self, root: int) -> None:
        self._saved: dict[int, Names] = {root: {}}
        self._waiting: list[_Operation] = []

    def add(self, touched: Iterable[int], changes: Iterable[Change]) -> None:
        """An operation happened."""
        self._waiting.append(_Operation(frozenset(touched), tuple(changes)))
        if len(self._waiting) > JOURNAL_MAX:
            self._save(self._waiting.pop(0))

    def sync_directory(self, number: int) -> None:
        """Save each operation on that directory, and whatever has to come before it."""
        needed = {number}
        kept: list[_Operation] = []
        saved: list[_Operation] = []
        for operation in reversed(self._waiting):
            if needed.isdisjoint(operation.touched):
                kept.append(operation)
            else:
                needed |= operation.touched
                saved.append(operation)
        for operation in reversed(saved):
            self._save(operation)
        self._waiting = kept[::-1]

    def sync_all(self) -> None:
        """Save every operation."""
        for operation in self._waiting:
            self._save(operation)
        self._waiting = []

    def power_cut(self, chance: random.Random) -> dict[int, Names]:
        """Decide which operations the disk holds, forget the others, and return all its names."""
        survival = chance.choice((0.0, 0.5, 0.9, 1.0))
        lost: set[int] = set()
        for operation in self._waiting:
            if lost.isdisjoint(operation.touched) and chance.random() < survival:
                self._save(operation)
            else:
                lost |= operation.touched
        self._waiting = []
        return self._saved

    def keep(self, numbers: set[int]) -> None:
        """Forget every directory that is not among `numbers`; nothing may be waiting."""
        self._saved = {n: names for n, names in self._saved.items() if n in numbers}

    def _save(self, operation: _Operation) -> None:
        for change in operation.changes:
            change.apply_to(self._saved.setdefault(change.directory.number, {}))
