"""What history does with files, in worker threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from crdt.slot import BlockRef, Content
from node.blocks.read import read_block
from node.files.layout import HISTORY
from node.files.port import FileSystem, NotRegularFileError


def verified_blocks(
    fs: FileSystem, path: str, key: bytes, blocks: Sequence[tuple[BlockRef, int]]
) -> dict[BlockRef, bytes]:
    """The bytes of those blocks that the file does hold.

    Raises:
        OSError: the disk refused; that the file is gone is no such thing.
    """
    found: dict[BlockRef, bytes] = {}
    if not blocks:
        return found
    try:
        with fs.open_read(path) as handle:
            for ref, offset in blocks:
                data = read_block(handle, key, ref, offset)
                if data is not None:
                    found[ref] = data
    except (FileNotFoundError, NotADirectoryError, NotRegularFileError):
        pass
    return found


def same_bytes(fs: FileSystem, pairs: Iterable[tuple[str, Content]]) -> list[bool]:
    """For each file or symlink: whether it holds just this small content."""
    return [_same(fs, path, content) for path, content in pairs]


def _same(fs: FileSystem, path: str, content: Content) -> bool:
    try:
        if content.target is not None:
            return fs.readlink(path) == content.target
        with fs.open_read(path) as handle:
            return handle.read_at(0, content.size + 1) == content.inline
    except OSError:
        return False


def unlink_all(fs: FileSystem, paths: Iterable[str]) -> None:
    """Remove files of history, which the index has forgotten. A power cut may bring some back:
    they are noted again then.
    """
    for path in paths:
        assert path.startswith(f"{HISTORY}/"), path
        with contextlib.suppress(FileNotFoundError):
            fs.unlink(path)
