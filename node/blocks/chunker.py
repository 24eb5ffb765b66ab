"""Cuts files into blocks: FastCDC by profile, or 64 KiB pieces for databases and disk images.

Where a block ends depends on nothing before its start, on its own bytes, on the one byte after
it, and on whether the file ends there. `node.blocks.scan_file` rests on that; a test with fixed
boundaries watches the library, since other boundaries would make equal files look different.

Everything here is synchronous and keeps one window of a file in memory. Cutting and hashing
release the GIL. A file that turns out shorter than its stat said raises `FileChangedError`.

Source: Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based
Storage Systems", IEEE TPDS 2020; normalisation level 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import pyfastcdc

from crdt.errors import WorldError
from crdt.slot import Profile

KIB: Final = 1024
MIB: Final = 1024 * KIB
LARGE_FILE_SIZE: Final = 4096 * MIB  # bytes; from here on fewer, larger blocks
HEAD_SIZE: Final = 4096  # bytes that `choose_profile` looks at
WINDOW_FIRST: Final = 2  # largest blocks in the first window: often a single block is wanted
WINDOW_LAST: Final = 4  # and in the last, at least: the next window begins within its last block
WINDOW_SIZE: Final = 4 * MIB  # bytes that windows grow to, if that is more: little is read twice

_MAGIC: Final = (
    (0, b"SQLite format 3\0"),
    (0, b"QFI\xfb"),  # qcow, qcow2
    (0, b"KDMV"),  # VMDK, sparse extent
    (0, b"COWD"),  # VMDK, older
    (0, b"conectix"),  # VHD
    (0, b"vhdxfile"),
    (0x40, b"\x7f\x10\xda\xbe"),  # VDI
    (512, b"EFI PART"),  # raw disk with a GPT
)


class FileChangedError(WorldError):
    """The file changed while it was read. Nothing is wrong; read it again later."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of plaintext in a block; only a file's last block may be below `minimum`."""

    minimum: int
    average: int
    maximum: int


SIZES: Final[Mapping[Profile, Sizes]] = MappingProxyType(
    {
        Profile.SMALL: Sizes(16 * KIB, 64 * KIB, 256 * KIB),
        Profile.LARGE: Sizes(256 * KIB, MIB, 4 * MIB),
        Profile.FIXED: Sizes(64 * KIB, 64 * KIB, 64 * KIB),
    }
)

ReadAt = Callable[[int, int], bytes]  # (offset, size); see `node.files.port.ReadHandle.read_at`


def choose_profile(head: bytes, size: int) -> Profile:
    """How to cut a file that has no profile yet.

    Args:
        head: The file's first `HEAD_SIZE` bytes, or all of it.
        size: Of the whole file, in bytes.
    """
    if any(head.startswith(magic, offset) for offset, magic in _MAGIC) or _has_mbr(head):
        return Profile.FIXED
    return Profile.LARGE if size >= LARGE_FILE_SIZE else Profile.SMALL


def _has_mbr(head: bytes) -> bool:
    """True for a raw disk with a partition table, or a boot sector: also written in place."""
    return head[510:512] == b"\x55\xaa" and set(head[446:510:16]) <= {0x00, 0x80}


def read_exactly(read_at: ReadAt, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`; raises FileChangedError where the file has become shorter."""
    data = read_at(offset, size)
    if len(data) != size:
        raise FileChangedError("the file became shorter while it was read; it is read again later")
    return data


class Cutter:
    """Cuts by one set of sizes. Cheap to make; use it in one thread at a time."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._fastcdc = None
        if sizes.minimum < sizes.maximum:
            self._fastcdc = pyfastcdc.FastCDC(
                sizes.average,
                min_size=sizes.minimum,
                max_size=sizes.maximum,
                normalized_chunking=1,
            )

    def cut(self, read_at: ReadAt, start: int, size: int) -> Iterator[tuple[int, memoryview]]:
        """Cut a file of `size` bytes from the block boundary `start` on.

        Yields:
            Each block's offset and its bytes, which stay valid as long as they are referenced.

        Raises:
            FileChangedError: the file is shorter than `size`.
        """
        largest = self._sizes.maximum
        window_size = WINDOW_FIRST * largest
        while start < size:
            length = min(window_size, size - start)
            window_size = min(2 * window_size, max(WINDOW_SIZE, WINDOW_LAST * largest))
            window = memoryview(read_exactly(read_at, start, length))
            done = 0
            for end in self._ends(window, at_end=start + length == size):
                yield start + done, window[done:end]
                done = end
            start += done

    def _ends(self, window: memoryview, *, at_end: bool) -> Iterator[int]:
        """Where the blocks end that `window` decides; what is left starts the next window."""
        last = len(window) if at_end else len(window) - self._sizes.maximum
        if self._fastcdc is None:
            step = self._sizes.maximum
            yield from range(step, len(window) + 1, step)
            if at_end and len(window) % step:
                yield len(window)
            return
        for chunk in self._fastcdc.cut_buf(window):
            if chunk.offset > last:
                return  # more bytes than the window has could have a say
            yield chunk.offset + chunk.length
