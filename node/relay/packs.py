"""Packed files: many sealed blocks one after the other in few files.

    packs/00000001.pack      sealed bytes without anything between them

Where a block lies is the database's word alone; bytes that no row names are nothing. A block is
written behind the end of the newest pack and made durable before its row is committed, so a row
never leads to less than the whole block. Bytes of a put that was never committed are cut off at the
next start.

Synchronous, for worker threads. Reads may run beside anything; `append`, `seal` and `delete` are
called one at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PACK_SIZE_MAX: Final = 64 * 1024 * 1024  # bytes; a compaction rewrites at most one pack's live ones


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a block lies."""

    pack: int
    offset: int
    size: int


class Packs:
    """All packs of one relay."""

    def __init__(self, directory: Path, ends: Mapping[int, int]) -> None:
        """Args: `ends` is, for each pack that a row names, where the last of its blocks ends."""
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        _fsync_directory(directory.parent)
        numbers = [number for path in directory.glob("*.pack") if (number := _number(path))]
        for number in numbers:
            if number not in ends:  # deleted by a compaction, or never committed
                self._path(number).unlink()
        self._number = max(ends, default=0)
        self._end = ends.get(self._number, 0)
        self._writing: int | None = None
        if self._end and self._path(self._number).exists():
            with self._path(self._number).open("r+b") as file:
                if file.seek(0, os.SEEK_END) > self._end:
                    file.truncate(self._end)
                elif file.tell() < self._end:
                    self._end = PACK_SIZE_MAX  # damaged: never write to it again
        self._next_number = max([self._number, *numbers], default=0) + 1

    def append(self, blobs: Sequence[bytes]) -> list[Extent]:
        """Write these blobs; durable when it returns.

        Raises:
            OSError: the disk refused; what was written counts for nothing.
        """
        extents: list[Extent] = []
        finished: list[int] = []
        began = self._number, self._end
        try:
            for blob in blobs:
                descriptor = self._room(len(blob), finished)
                _write_all(descriptor, blob, self._end)
                extents.append(Extent(self._number, self._end, len(blob)))
                self._end += len(blob)
            for descriptor in (*finished, *([self._writing] if self._writing is not None else ())):
                os.fsync(descriptor)
        except OSError:
            self._give_up(began, finished)
            raise
        finally:
            for descriptor in finished:
                os.close(descriptor)
        return extents

    def read(self, extent: Extent) -> bytes:
        """The bytes that lie there, unchecked; fewer at the end of a damaged pack.

        Raises:
            OSError: they cannot be read.
        """
        descriptor = os.open(self._path(extent.pack), os.O_RDONLY)
        try:
            return os.pread(descriptor, extent.size, extent.offset)
        finally:
            os.close(descriptor)

    def rotate(self) -> None:
        """Begin a new pack with the next blob."""
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None
        self._end = PACK_SIZE_MAX

    @property
    def current(self) -> int:
        """The pack that is being written."""
        return self._number

    def numbers(self) -> list[int]:
        """All packs on the disk."""
        return sorted(filter(None, map(_number, self._directory.glob("*.pack"))))

    def size(self, pack: int) -> int:
        """Bytes of a pack on the disk; 0 when it is gone."""
        try:
            return self._path(pack).stat().st_size
        except FileNotFoundError:
            return 0

    def delete(self, packs: Iterable[int]) -> None:
        """Forget packs that no row names any more."""
        for pack in packs:
            with contextlib.suppress(FileNotFoundError):
                self._path(pack).unlink()

    def close(self) -> None:
        """Close what is open."""
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None

    def _room(self, size: int, finished: list[int]) -> int:
        """The descriptor of a pack with room for `size` bytes at `self._end`; a pack that is full
        goes to `finished`.
        """
        if self._end and self._end + size > PACK_SIZE_MAX:
            if self._writing is not None:
                finished.append(self._writing)
                self._writing = None
            self._number, self._end = self._next_number, 0
        if self._writing is None:
            self._number = self._number or self._next_number
            path = self._path(self._number)
            self._writing = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            _fsync_directory(self._directory)
            self._next_number = max(self._next_number, self._number + 1)
        return self._writing

    def _give_up(self, began: tuple[int, int], finished: list[int]) -> None:
        """Nobody knows what the disk holds after an error: what follows goes to a new pack."""
        number, end = began
        if self._writing is not None:
            if number == self._number:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._writing, end)
            finished.append(self._writing)
            self._writing = None
        self._end = PACK_SIZE_MAX

    def _path(self, pack: int) -> Path:
        return self._directory / f"{pack:08}.pack"


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _number(path: Path) -> int:
    return int(path.stem) if path.stem.isdecimal() else 0


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
