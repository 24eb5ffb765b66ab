"""Keeps copies of the texts on this disk, so that there is an ancestor when they are merged.

When two devices edit one file, both overwrite the version that they had in common, and nobody has
it any more: history keeps what sync replaces, not what people overwrite. Texts up to 4 KiB lie in
the log; larger ones are copied to here, compressed, some seconds after they came to lie on the
disk. What is oldest goes when there is too much.

A cache: nothing depends on it but merging. It is a small database of its own beside the index,
never synced to the disk on purpose. A damaged one is deleted; what is read from it is verified.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path
from typing import Final

import trio
import zstandard

from crdt.merge_text import TEXT_SIZE_MAX, is_text
from crdt.slot import BlockRef, Content, Kind
from node.blocks.chunker import SIZES, Cutter
from node.blocks.manifest import build_manifest
from node.blocks.read import read_block
from node.blocks.scan_file import scan_blocks
from node.files.port import FileSystem
from node.ports import Threads
from node.sync.folder import Folder

logger = logging.getLogger("shoal.merge")

CACHE_SIZE_MAX: Final = 64 * 1024 * 1024  # bytes, compressed: some 200 MB of notes
QUIET_S: Final = 2.0  # after something came to lie on the disk: mostly more follows
AT_START_MAX: Final = 2_000  # files that are looked at when the node starts, the newest first
BATCH_SIZE: Final = 2 * 1024 * 1024  # bytes of texts read and compressed at once
PAUSE_S: Final = 0.1  # between two batches: others want the processor too
LEVEL: Final = 3

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS texts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    digest BLOB NOT NULL UNIQUE,      -- Content.digest
    data BLOB NOT NULL                -- zstd
);
"""


_Place = tuple[bytes, str, list[tuple[BlockRef, int]]]
"""A version's digest, where it lies, and its blocks with their offsets."""


class BaseTexts:
    """The cache of one folder."""

    def __init__(
        self, folder: Folder, fs: FileSystem, threads: Threads, path: Path | None = None
    ) -> None:
        """Args: `path` is where it lies; None for memory."""
        self._folder = folder
        self._fs = fs
        self._threads = threads
        self._path = path
        self._db = self._open()
        sizes = self._db.execute("SELECT coalesce(sum(length(data)), 0) FROM texts")
        (self._size,) = sizes.fetchone()

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _open(self) -> sqlite3.Connection:
        try:
            return _connect(self._path)
        except sqlite3.DatabaseError as error:
            assert self._path is not None, "memory is never damaged"
            logger.info("the cache of texts is made anew (%s)", error)
            for ending in ("", "-journal"):
                with contextlib.suppress(FileNotFoundError):
                    self._path.with_name(self._path.name + ending).unlink()
            return _connect(self._path)

    # --- reading --------------------------------------------------------------------------------

    def get(self, content: Content) -> bytes | None:
        """The bytes of a version, verified; None if they are not here. For the event loop: takes
        some milliseconds.
        """
        if content.manifest is None or content.size > TEXT_SIZE_MAX:
            return None
        try:
            row = self._db.execute(
                "SELECT data FROM texts WHERE digest = ?", (content.digest,)
            ).fetchone()
        except sqlite3.Error:
            return None
        if row is None:
            return None
        data = _unpack(row[0], content.size)
        whole = data is not None and len(data) == content.size and self._is(data, content)
        return data if whole else None

    def _is(self, data: bytes, content: Content) -> bool:
        """True when these are the bytes of that version."""
        assert content.manifest is not None

        def read_at(offset: int, size: int) -> bytes:
            return data[offset : offset + size]

        profile, key = content.manifest.profile, self._folder.block_key
        blocks = scan_blocks(read_at, len(data), Cutter(SIZES[profile]), key)
        manifest, _ = build_manifest(key, profile, [ref for ref, _ in blocks])
        return manifest == content.manifest

    # --- keeping --------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Keep what comes to lie on the disk, until cancelled."""
        unkept = self._folder.unkept
        for item in self._folder.disk.newest(unkept.size_min, unkept.size_max, AT_START_MAX):
            unkept.add(item)
        while True:
            seen = unkept.added.count
            if unkept:
                await trio.sleep(QUIET_S)
            while unkept:
                await self.keep_some()
                await trio.sleep(PAUSE_S)
            await unkept.added.wait_past(seen)

    async def keep_some(self) -> None:
        """Keep one batch of what is to be kept."""
        batch: list[_Place] = []
        size = 0
        while self._folder.unkept and size < BATCH_SIZE:
            item = self._folder.unkept.pop()
            row, path = self._folder.disk.get(item), self._folder.disk.path(item)
            if row is None or path is None or row.kind is not Kind.FILE or self._has(row.digest):
                continue
            blocks = self._folder.locations.blocks_of(item)
            if sum(ref.length for ref, _ in blocks) == row.size:
                batch.append((row.digest, path, blocks))
                size += row.size
        key = self._folder.block_key
        self._put(await self._threads.run(_read_all, self._fs, key, batch))

    def _has(self, digest: bytes) -> bool:
        row = self._db.execute("SELECT 1 FROM texts WHERE digest = ?", (digest,)).fetchone()
        return row is not None

    def _put(self, texts: list[tuple[bytes, bytes]]) -> None:
        try:
            with self._db:
                for digest, data in texts:
                    done = self._db.execute(
                        "INSERT OR IGNORE INTO texts (digest, data) VALUES (?, ?)", (digest, data)
                    )
                    self._size += len(data) * done.rowcount
                while self._size > CACHE_SIZE_MAX:
                    number, size = self._db.execute(
                        "SELECT number, length(data) FROM texts ORDER BY number LIMIT 1"
                    ).fetchone()
                    self._db.execute("DELETE FROM texts WHERE number = ?", (number,))
                    self._size -= size
        except sqlite3.Error as error:
            logger.info("texts are not kept for merging (%s)", error)


def _connect(path: Path | None) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:" if path is None else path)
    db.execute("PRAGMA synchronous = OFF")
    db.executescript(_SCHEMA)
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        db.close()
        raise sqlite3.DatabaseError(verdict)
    return db


def _read_all(fs: FileSystem, key: bytes, batch: list[_Place]) -> list[tuple[bytes, bytes]]:
    """The texts among them, compressed, each with its digest."""
    found = ((digest, _read(fs, path, key, blocks)) for digest, path, blocks in batch)
    return [(digest, data) for digest, data in found if data is not None]


def _read(
    fs: FileSystem, path: str, key: bytes, blocks: list[tuple[BlockRef, int]]
) -> bytes | None:
    """A text that lies on the disk, compressed; None if it is none, or another one by now."""
    found = bytearray()
    try:
        with fs.open_read(path) as handle:
            for ref, offset in blocks:
                data = read_block(handle, key, ref, offset)
                if data is None or b"\0" in data:
                    return None
                found += data
    except OSError:
        return None
    text = bytes(found)
    return zstandard.ZstdCompressor(level=LEVEL).compress(text) if is_text(text) else None


def _unpack(packed: bytes, size: int) -> bytes | None:
    """The text of `size` bytes; None if it is damaged."""
    try:
        with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
            data: bytes = reader.read(size + 1)
    except zstandard.ZstdError:
        return None
    return data
