"""Carries out what was planned, on the disk, in a worker thread. Decides nothing.

Every job says what it expects to find. Before anything is touched lstat is asked; after an exchange
or a rename, what came out is looked at once more, and if it is not what was expected (a person was
quicker than the check), the operation is undone and the outcome says `CHANGED`: the path is then
scanned, and what the person did becomes a write of its own.

Order of durability: new content is on the disk before it gets its name; names are on the disk
before the caller commits the index. If the process dies in between, the full scan at the next
start finds content that the view already wants and adopts it; what was displaced lies in
`.shoal/history` or as `*.swap` in `.shoal/tmp`, where `node.sync.recovery` looks.
"""

from __future__ import annotations

import contextlib
import enum
import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from crdt.errors import WorldError
from crdt.slot import Kind
from node.files.layout import TMP
from node.files.patch import Patch, carry_out, take_back, write_journal
from node.files.port import (
    ExchangeUnsupportedError,
    FileSystem,
    ReadHandle,
    Stat,
    WriteHandle,
    split_parent,
)
from node.files.sparse import write_sparsely
from node.index.disk_rows import DiskRow
from node.sync.planner import UNSURE, same_file_moved, still_as_agreed

GROUP_SYNC_MIN: Final = 8  # files in a batch from which one syncfs is cheaper than an fsync each


class HalfPatchedError(WorldError):
    """A file is neither what it was nor what it shall be; its journal says both."""


class Verdict(enum.Enum):
    """How a job ended."""

    DONE = enum.auto()
    OCCUPIED = enum.auto()  # something that we do not know lies at the target
    CHANGED = enum.auto()  # what lies there is not what the disk row says
    IN_USE = enum.auto()  # it cannot be changed in place, and has to be exchanged
    FAILED = enum.auto()  # the world refused; `error` says how


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job; `stat` is what lies at the target now, where there is anything."""

    verdict: Verdict
    stat: Stat | None = None
    error: OSError | None = None
    displaced: bool = False  # the old content went to the job's `history` path


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """Create a directory where nothing is known to lie."""

    target: str


@dataclass(frozen=True, slots=True)
class Relocate:
    """Rename what `expected` describes from `source` to a free `target`."""

    source: str
    target: str
    expected: DiskRow


@dataclass(frozen=True, slots=True)
class Place:
    """Put new content at `target`, displacing `expected` to `history` if given.

    `source` is the content of a small file, a symlink's target, or None when the content already
    lies, whole and written, at `temporary`. What is displaced comes to lie at `swap`, a name under
    which nothing else ever lies, so that after a crash it is not taken for unfinished work.
    """

    target: str
    temporary: str
    swap: str
    source: bytes | str | None
    mtime_ns: int
    executable: bool
    expected: DiskRow | None
    history: str


@dataclass(frozen=True, slots=True)
class SetMetadata:
    """Give a file another mtime or executable bit; not (`IN_USE`) one that has other names."""

    target: str
    mtime_ns: int
    executable: bool
    expected: DiskRow


@dataclass(frozen=True, slots=True)
class Remove:
    """Move a file or symlink to `history`; remove a directory if it is empty."""

    target: str
    expected: DiskRow
    history: str


@dataclass(frozen=True, slots=True)
class PatchFile:
    """Change parts of a large file in place: see `node.files.patch`.

    The new bytes lie in `part`, at their offsets. Not done (`IN_USE`) where somebody has the file
    open, where another name leads to it, or where this disk cannot tell.
    """

    target: str
    part: str
    journal: str
    patch: Patch
    expected: DiskRow


Job = MakeDirectory | Relocate | Place | PatchFile | SetMetadata | Remove


def execute(fs: FileSystem, jobs: Sequence[Job]) -> list[Outcome]:
    """Carry the jobs out in order; all that is DONE is durable when this returns.

    Raises:
        OSError: the final sync failed: nothing may be taken for durable.
    """
    places = [job for job in jobs if isinstance(job, Place)]
    together = len(places) >= GROUP_SYNC_MIN
    failed = {id(job): error for job in places if (error := _prepare(fs, job, not together))}
    if together:
        fs.sync()
    outcomes = []
    for job in jobs:
        if id(job) in failed:
            outcomes.append(Outcome(Verdict.FAILED, error=failed[id(job)]))
            continue
        try:
            outcomes.append(_execute(fs, job))
        except OSError as error:
            outcomes.append(_refused(error))
    _sync_names(fs, jobs, outcomes)
    return outcomes


def _execute(fs: FileSystem, job: Job) -> Outcome:
    match job:
        case MakeDirectory():
            fs.mkdir(job.target)
            return Outcome(Verdict.DONE, fs.lstat(job.target))
        case Relocate():
            return _relocate(fs, job)
        case Place():
            return _place(fs, job)
        case PatchFile():
            return _patch(fs, job)
        case SetMetadata():
            stat = fs.lstat(job.target)
            if not still_as_agreed(stat, job.expected):
                return Outcome(Verdict.CHANGED)
            if stat.links != 1:
                return Outcome(Verdict.IN_USE)  # its other names would change as well
            fs.set_metadata(job.target, mtime_ns=job.mtime_ns, executable=job.executable)
            return Outcome(Verdict.DONE, fs.lstat(job.target))
        case Remove():
            return _remove(fs, job)


def _refused(error: OSError) -> Outcome:
    if isinstance(error, FileExistsError):
        return Outcome(Verdict.OCCUPIED, error=error)
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
        return Outcome(Verdict.CHANGED, error=error)
    return Outcome(Verdict.FAILED, error=error)


def _prepare(fs: FileSystem, job: Place, fsync: bool) -> OSError | None:
    """Write the new content to `temporary`; returns what went wrong."""
    try:
        if isinstance(job.source, str):
            _discard(fs, job.temporary)
            fs.symlink(job.source, job.temporary)
            return None
        if job.source is not None:
            _discard(fs, job.temporary)
            handle = fs.create(job.temporary, executable=job.executable)
        else:
            handle = fs.open_write(job.temporary)
        with handle:
            if job.source:
                handle.truncate(len(job.source))
                write_sparsely(handle, 0, job.source)
            permissions = None  # a private file stays private
            if job.expected is not None:
                with contextlib.suppress(OSError):
                    permissions = fs.lstat(job.target).permissions
            handle.set_metadata(
                mtime_ns=job.mtime_ns, executable=job.executable, permissions=permissions
            )
            if fsync or job.source is None:
                handle.fsync()
    except OSError as error:
        if job.source is not None:
            with contextlib.suppress(OSError):
                _discard(fs, job.temporary)
        return error
    return None


def _discard(fs: FileSystem, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        fs.unlink(path)


def _relocate(fs: FileSystem, job: Relocate) -> Outcome:
    # An edit that we have not seen moves along, so a doubtful ctime is no obstacle here.
    if not same_file_moved(fs.lstat(job.source), job.expected):
        return Outcome(Verdict.CHANGED)
    try:
        fs.rename(job.source, job.target)
    except FileExistsError:
        if fs.lstat(job.target).inode != job.expected.inode:
            raise
        _respell(fs, job)
    stat = fs.lstat(job.target)
    if not same_file_moved(stat, job.expected):
        fs.rename(job.target, job.source)
        return Outcome(Verdict.CHANGED)
    return Outcome(Verdict.DONE, stat)


def _respell(fs: FileSystem, job: Relocate) -> None:
    """Rename between two spellings that this disk takes for one name; where they are two, and hard
    links of one file, nothing is changed.
    """
    parked = f"{TMP}/{job.expected.item.hex()}.parked"
    fs.rename(job.source, parked)
    try:
        fs.rename(parked, job.target)
    except OSError:
        fs.rename(parked, job.source)
        raise


def _place(fs: FileSystem, job: Place) -> Outcome:
    if job.expected is None:
        fs.rename(job.temporary, job.target)
        return Outcome(Verdict.DONE, fs.lstat(job.target))
    if not still_as_agreed(fs.lstat(job.target), job.expected):
        return Outcome(Verdict.CHANGED)
    fs.rename(job.temporary, job.swap)
    try:
        fs.exchange(job.swap, job.target)
    except ExchangeUnsupportedError:
        return _place_in_two_steps(fs, job, job.expected)
    except OSError:
        fs.rename(job.swap, job.temporary)
        raise
    if not same_file_moved(fs.lstat(job.swap), job.expected):
        fs.exchange(job.swap, job.target)
        fs.rename(job.swap, job.temporary)
        return Outcome(Verdict.CHANGED)
    try:
        fs.rename(job.swap, job.history)
    except OSError:
        fs.exchange(job.swap, job.target)
        fs.rename(job.swap, job.temporary)
        raise
    return Outcome(Verdict.DONE, fs.lstat(job.target), displaced=True)


def _place_in_two_steps(fs: FileSystem, job: Place, expected: DiskRow) -> Outcome:
    # Between the two renames the name is free for a moment; after a crash there the next start
    # finds the old content in history and the new one in tmp, and does the second step.
    fs.fsync_directory(TMP)
    fs.rename(job.target, job.history)
    if not same_file_moved(fs.lstat(job.history), expected):
        fs.rename(job.history, job.target)
        fs.rename(job.swap, job.temporary)
        return Outcome(Verdict.CHANGED)
    try:
        fs.rename(job.swap, job.target)
    except OSError:
        fs.rename(job.history, job.target)
        fs.rename(job.swap, job.temporary)
        raise
    return Outcome(Verdict.DONE, fs.lstat(job.target), displaced=True)


def _patch(fs: FileSystem, job: PatchFile) -> Outcome:
    stat = fs.lstat(job.target)
    if not still_as_agreed(stat, job.expected):
        return Outcome(Verdict.CHANGED)
    if stat.links != 1:
        return Outcome(Verdict.IN_USE)  # a hard link outside may be somebody's backup
    try:
        file = fs.open_alone(job.target)
    except OSError as error:
        return Outcome(Verdict.IN_USE, error=error)
    with file, fs.open_read(job.part) as part:
        if file.stat() != stat:
            return Outcome(Verdict.CHANGED)
        _discard(fs, job.journal)
        with fs.create(job.journal) as journal:
            write_journal(journal, job.patch, file, part)
            journal.fsync()
            fs.fsync_directory(TMP)
            try:
                carry_out(file, job.patch, part)
            except OSError:
                _take_back(fs, file, job, journal)
                raise
        alone, stat = file.settle(), file.stat()
    return Outcome(Verdict.DONE, stat if alone else replace(stat, ctime_ns=UNSURE))


def _take_back(fs: FileSystem, file: WriteHandle, job: PatchFile, journal: ReadHandle) -> None:
    try:
        take_back(file, job.patch, journal)
    except OSError as error:
        raise HalfPatchedError(
            "the disk failed in the middle of changing a large file, and again when that was to be "
            f"undone ({error.strerror}). Nothing is lost: start the node again once the disk "
            "works, and it finishes what it began."
        ) from error
    with contextlib.suppress(OSError):
        fs.unlink(job.journal)


def _remove(fs: FileSystem, job: Remove) -> Outcome:
    stat = fs.lstat(job.target)
    if job.expected.kind is Kind.DIRECTORY:
        if int(stat.kind) != int(job.expected.kind):
            return Outcome(Verdict.CHANGED)
        fs.rmdir(job.target)
        return Outcome(Verdict.DONE)
    if not still_as_agreed(stat, job.expected):
        return Outcome(Verdict.CHANGED)
    fs.rename(job.target, job.history)
    if not same_file_moved(fs.lstat(job.history), job.expected):
        fs.rename(job.history, job.target)
        return Outcome(Verdict.CHANGED)
    return Outcome(Verdict.DONE, displaced=True)


def _sync_names(fs: FileSystem, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
    """Make every changed name durable."""
    done = [
        job for job, outcome in zip(jobs, outcomes, strict=True) if outcome.verdict is Verdict.DONE
    ]
    directories = sorted({split_parent(path)[0] for job in done for path in _names(job)})
    if len(directories) > GROUP_SYNC_MIN or any(isinstance(job, SetMetadata) for job in done):
        fs.sync()
        return
    for directory in directories:
        with contextlib.suppress(FileNotFoundError):  # removed by a later job of this batch
            fs.fsync_directory(directory)


def _names(job: Job) -> Iterable[str]:
    match job:
        case MakeDirectory() | SetMetadata():
            return (job.target,)
        case PatchFile():
            return ()
        case Relocate():
            return (job.source, job.target)
        case Place():
            return (job.target, job.temporary, job.history)
        case Remove():
            return (job.target, job.history)
