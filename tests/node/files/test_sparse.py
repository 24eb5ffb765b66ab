"""What is written sparsely reads as if it had been written whole, and leaves holes alone."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from node.files.disk import DiskFileSystem
from node.files.memory import MemoryFileSystem
from node.files.sparse import PAGE_SIZE, write_sparsely

PIECES = st.lists(
    st.tuples(st.sampled_from([b"\0", b"x"]), st.integers(1, 3 * PAGE_SIZE)), max_size=6
)


def joined(pieces: list[tuple[bytes, int]]) -> bytes:
    return b"".join(byte * count for byte, count in pieces)


@given(before=PIECES, data=PIECES, offset=st.integers(0, 2 * PAGE_SIZE))
def test_it_reads_as_written(
    before: list[tuple[bytes, int]], data: list[tuple[bytes, int]], offset: int
) -> None:
    old, new = joined(before), joined(data)
    fs = MemoryFileSystem()
    with fs.create("f") as handle:
        handle.write_at(0, old)
        handle.truncate(size := max(len(old), offset + len(new)))
        write_sparsely(handle, offset, new)
        expected = bytearray(old.ljust(size, b"\0"))
        expected[offset : offset + len(new)] = new
        assert handle.read_at(0, size) == bytes(expected)


def test_holes_stay_holes(tmp_path: Path) -> None:
    fs = DiskFileSystem(tmp_path)
    data = bytes(500_000) + b"something" + bytes(500_000)
    with fs.create("f") as handle:
        handle.truncate(len(data))
        write_sparsely(handle, 0, data)
        assert handle.read_at(0, len(data)) == data
        assert handle.stat().blocks * 512 < 20_000
    fs.close()
