"""Writes without filling holes: runs of zeroes are left out where zeroes lie already."""

from __future__ import annotations

from typing import Final

from node.files.port import WriteHandle

PAGE_SIZE: Final = 4096  # bytes; holes are made of whole pages on nearly every file system
_ZEROES: Final = bytes(PAGE_SIZE)


def write_sparsely(handle: WriteHandle, offset: int, data: bytes) -> None:
    """Write `data` at `offset`; pages of zeroes are written only over something else.

    The file must reach as far already, or end in data that is no zero: a hole has to be there to be
    left alone (`truncate` extends with one).
    """
    if _ZEROES not in data:  # nearly every block
        handle.write_at(offset, data)
        return
    start = 0  # of what is to be written and has not been
    at = -offset % PAGE_SIZE
    while at + PAGE_SIZE <= len(data):
        end = at + PAGE_SIZE
        if data[at:end] == _ZEROES and handle.read_at(offset + at, PAGE_SIZE) == _ZEROES:
            if start < at:
                handle.write_at(offset + start, data[start:at])
            start = end
        at = end
    if start < len(data):
        handle.write_at(offset + start, data[start:])
