"""Devices on real disks in one process; entries are carried by hand, as in `two_folders`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import cast

from node.files.disk import DiskFileSystem
from node.files.memory import MemoryFileSystem
from node.files.portable_names import Personality
from tests.support.two_folders import Box, StepClock, members


class RealClock(StepClock):
    """The machine's: what a file system stamps must fit what the node reads."""

    @property
    def now_ns(self) -> int:
        """See `StepClock`."""
        return time.time_ns()

    @now_ns.setter
    def now_ns(self, _: int) -> None:
        """Time goes on by itself."""

    def wall_ns(self) -> int:
        """See `Clock`."""
        return time.time_ns()


class PlainDisk(DiskFileSystem):
    """A disk that keeps all names apart; the tests' file systems do."""

    personality = Personality()


class DiskBox(Box):
    """One device with one folder below `root`."""

    def __init__(self, seed: int, root: Path) -> None:
        root.mkdir()
        self.root = root
        # `Box` asks a disk for no more than any one answers, but for the snapshot below.
        super().__init__(seed, cast(MemoryFileSystem, PlainDisk(root)), RealClock())

    def tree(self) -> dict[str, object]:
        """As `Box.tree`: bytes for a file, None for a directory, its target for a symlink."""
        found: dict[str, object] = {}
        for directory, names, files in os.walk(self.root):
            if Path(directory) == self.root:
                names.remove(".shoal")
            for name in (*names, *files):
                path = Path(directory) / name
                found[str(path.relative_to(self.root))] = _content(path)
        return found

    async def settle(self, *, rounds: int = 200, all_blocks: bool = True) -> None:
        """As `Box.settle`; a file that was just written is looked at until its stamps are sure."""
        await super().settle(rounds=rounds, all_blocks=all_blocks)

    def displaced(self) -> set[object]:
        """As `Box.displaced`."""
        return {path.read_bytes() for path in (self.root / ".shoal/history").iterdir()}

    def close(self) -> None:
        """Close disk and index."""
        self.database.close()
        cast(PlainDisk, self.fs).close()


def _content(path: Path) -> object:
    if path.is_symlink():
        return str(path.readlink())
    return None if path.is_dir() else path.read_bytes()


def disk_boxes(count: int, base: Path) -> list[DiskBox]:
    """Devices that are members of one folder, each on a directory of its own below `base`."""
    return members([DiskBox(number, base / f"device {number}") for number in range(1, count + 1)])
