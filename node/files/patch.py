"""Changes a large file in place, so that a crash at any byte does no harm.

    .shoal/tmp/<item>.patch
        magic || length of the header (4, big-endian) || header || old and new bytes of each stretch
        || BLAKE3 of all before

A *stretch* is a part of the file whose bytes change. The journal is whole and on the disk before
the first byte of the file is touched, and goes after the index has committed. A journal without its
closing digest was never begun. With one, what each sector of each stretch holds can be told:

    old bytes, new bytes, both (torn)    ours: the patch is carried to its end
    anything else                        somebody wrote there after the crash: left alone

`Before` is the disk row's word on the file; a journal counts only while the row still says just
that, so one that could not be removed does no harm later.

Pure but for the handles that are passed in; memory is a piece of 1 MiB at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import blake3

from crdt.codec import pack, unpack
from crdt.slot import BlockRef
from crdt.version_vector import VersionVector
from node.files.port import ReadHandle, WriteHandle

MAGIC: Final = b"shoal patch 1\n"
HEADER_SIZE_MAX: Final = 4 * 1024 * 1024  # bytes
STRETCHES_MAX: Final = 20_000  # about 25 bytes each
DIGEST_SIZE: Final = 32
PIECE_SIZE: Final = 1024 * 1024  # bytes in memory at a time
SECTOR_SIZE: Final = 512  # bytes that a disk writes or does not

Blocks = Sequence[tuple[BlockRef, int]]


@dataclass(frozen=True, slots=True)
class Stretch:
    """At `offset`, `old` bytes become `new` bytes; they differ at the file's end only."""

    offset: int
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class Before:
    """The file as agreed before: what its disk row says."""

    digest: bytes
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class After:
    """What it becomes."""

    digest: bytes
    version: VersionVector
    size: int
    mtime_ns: int
    executable: bool


@dataclass(frozen=True, slots=True)
class Patch:
    """One change of one file."""

    before: Before
    after: After
    stretches: tuple[Stretch, ...]

    def header(self) -> bytes:
        """The journal's beginning."""
        before, after = self.before, self.after
        header = pack(
            [
                [before.digest, before.inode, before.size, before.mtime_ns, before.ctime_ns],
                [
                    after.digest,
                    after.version.to_wire(),
                    after.size,
                    after.mtime_ns,
                    after.executable,
                ],
                [[one.offset, one.old, one.new] for one in self.stretches],
            ]
        )
        return MAGIC + len(header).to_bytes(4, "big") + header


def differing(old: Blocks, new: Blocks, old_size: int, new_size: int) -> tuple[Stretch, ...]:
    """Where a file of the blocks `new` differs from one of the blocks `old`."""
    same = {offset: ref for ref, offset in old}
    stretches: list[Stretch] = []
    start = end = 0
    for ref, offset in new:
        if same.get(offset) == ref:
            continue
        if offset != end and end > start:
            stretches.append(_stretch(start, end, old_size))
        if offset != end:
            start = offset
        end = offset + ref.length
    if end > start:
        stretches.append(_stretch(start, end, old_size))
    if new_size < old_size:
        stretches.append(Stretch(new_size, old_size - new_size, 0))
    return tuple(stretches)


def _stretch(start: int, end: int, old_size: int) -> Stretch:
    return Stretch(start, max(0, min(end, old_size) - start), end - start)


def touched(blocks: Blocks, extents: Sequence[tuple[int, int]]) -> list[tuple[BlockRef, int]]:
    """Those of `blocks` that lie in one of `extents`, at least in part; both in the file's order.

    An extent is (offset, bytes).
    """
    found = []
    waiting = [(start, start + size) for start, size in reversed(extents) if size]
    for ref, offset in blocks:
        while waiting and waiting[-1][1] <= offset:
            waiting.pop()
        if waiting and waiting[-1][0] < offset + ref.length:
            found.append((ref, offset))
    return found


# --- the journal ----------------------------------------------------------------------------------


def write_journal(out: WriteHandle, patch: Patch, file: ReadHandle, part: ReadHandle) -> None:
    """Write the whole journal: old bytes from `file`, new ones from `part`. Not synced yet."""
    hasher, position = blake3.blake3(), 0

    def write(data: bytes) -> None:
        nonlocal position
        hasher.update(data)
        out.write_at(position, data)
        position += len(data)

    write(patch.header())
    for one in patch.stretches:
        for source, size in ((file, one.old), (part, one.new)):
            for offset, length in _pieces(one.offset, size):
                data = source.read_at(offset, length)
                if len(data) != length:
                    raise OSError(f"a file ends {length - len(data)} bytes too early")
                write(data)
    out.write_at(position, hasher.digest(DIGEST_SIZE))


def read_journal(journal: ReadHandle) -> tuple[Patch, int] | None:
    """The patch, and where the bytes of its stretches begin; None if it is not whole."""
    size = journal.stat().size
    head = journal.read_at(0, len(MAGIC) + 4)
    if not head.startswith(MAGIC) or len(head) != len(MAGIC) + 4:
        return None
    length = int.from_bytes(head[len(MAGIC) :], "big")
    if length > HEADER_SIZE_MAX:
        return None
    begin = len(head) + length
    hasher = blake3.blake3()
    for offset, piece in _pieces(0, size - DIGEST_SIZE):
        hasher.update(journal.read_at(offset, piece))
    if journal.read_at(size - DIGEST_SIZE, DIGEST_SIZE) != hasher.digest(DIGEST_SIZE):
        return None
    patch = _parse(journal.read_at(len(head), length))
    if begin + sum(one.old + one.new for one in patch.stretches) + DIGEST_SIZE != size:
        return None
    return patch, begin


def _parse(header: bytes) -> Patch:
    # Whatever bears the right digest was written by us.
    before, after, stretches = unpack(header, size_max=HEADER_SIZE_MAX)
    digest, version, size, mtime_ns, executable = after
    return Patch(
        Before(*before),
        After(digest, VersionVector.from_wire(version), size, mtime_ns, bool(executable)),
        tuple(Stretch(*one) for one in stretches),
    )


# --- the file -------------------------------------------------------------------------------------


def carry_out(file: WriteHandle, patch: Patch, part: ReadHandle) -> None:
    """Write the new bytes, from `part`; durable when it returns."""
    for one in patch.stretches:
        for offset, length in _pieces(one.offset, one.new):
            file.write_at(offset, part.read_at(offset, length))
    if patch.after.size != patch.before.size:
        file.truncate(patch.after.size)
    file.set_metadata(mtime_ns=patch.after.mtime_ns, executable=patch.after.executable)
    file.fsync()


def take_back(file: WriteHandle, patch: Patch, journal: ReadHandle) -> None:
    """Write the old bytes again, which nobody else can have changed meanwhile."""
    begin = len(patch.header())
    for one in patch.stretches:
        for offset, length in _pieces(0, one.old):
            file.write_at(one.offset + offset, journal.read_at(begin + offset, length))
        begin += one.old + one.new
    file.truncate(patch.before.size)
    file.set_metadata(mtime_ns=patch.before.mtime_ns)
    file.fsync()


def finish(file: WriteHandle, patch: Patch, begin: int, journal: ReadHandle) -> bool:
    """After a crash: write what is still to be written, but nothing over what is not ours.

    Args:
        file: The file, in any state between the old and the new one, or changed by somebody.
        patch: What `read_journal` found, with `begin`.
        begin: Where the stretches' bytes begin.
        journal: The journal.
    Returns: True if the file is the new one now, as far as the stretches tell.
    """
    ours = True
    for one in patch.stretches:
        old_at, new_at = begin, begin + one.old
        begin += one.old + one.new
        for offset, length in _pieces(0, max(one.old, one.new)):
            old = journal.read_at(old_at + offset, max(0, min(length, one.old - offset)))
            new = journal.read_at(new_at + offset, max(0, min(length, one.new - offset)))
            now = file.read_at(one.offset + offset, length)
            if not one.new:  # what is to be cut off
                ours = ours and now == old[: len(now)]
                continue
            mended = mend(now, old, new)
            ours = ours and mended == new
            if mended != now:
                file.write_at(one.offset + offset, mended)
    if file.stat().size > max(patch.before.size, patch.after.size):
        ours = False  # somebody appended
    if ours:
        file.truncate(patch.after.size)
        file.set_metadata(mtime_ns=patch.after.mtime_ns, executable=patch.after.executable)
    file.fsync()
    return ours


def mend(now: bytes, old: bytes, new: bytes) -> bytes:
    """What a stretch should hold that holds `now`: `new`, but for sectors that are not ours.

    `old` is no longer than `new`, `now` may be cut off or filled up with zeros.
    """
    parts = []
    for start in range(0, len(new), SECTOR_SIZE):
        end = start + SECTOR_SIZE
        sector, was, becomes = now[start:end], old[start:end], new[start:end]
        parts.append(becomes if _ours(sector, was, becomes) else sector)
    return b"".join(parts)


def _ours(now: bytes, old: bytes, new: bytes) -> bool:
    """True for old or new bytes, or some of these and then some of those."""
    was = old.ljust(len(now), b"\0")[: len(now)]
    if now in (new, was):
        return True
    first, last = _common(now, new), _common(now[::-1], new[: len(now)][::-1])
    return now[first:] == was[first:] or now[: len(now) - last] == was[: len(now) - last]


def _common(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    shorter = min(len(one), len(other))
    return next((n for n in range(shorter) if one[n] != other[n]), shorter)


def _pieces(offset: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, PIECE_SIZE):
        yield offset + start, min(PIECE_SIZE, size - start)
