"""Reads files in a worker thread and describes their content; one bad file stays one bad file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crdt.actions import Draft
from crdt.slot import BlockRef, Content, Kind
from node.blocks.scan_file import FileChangedError, describe_file
from node.files.port import FileSystem, StatKind
from node.files.scanner import is_gone
from node.sync.observed import Described


@dataclass(frozen=True, slots=True)
class Job:
    """A path to read; `previous` and `blocks` are what it held when last agreed."""

    path: str
    kind: StatKind
    previous: Content | None = None
    blocks: tuple[tuple[BlockRef, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a path could not be described. `gone` and `changing` are no warnings, only news."""

    reason: str
    gone: bool = False
    changing: bool = False


def describe_all(fs: FileSystem, jobs: Sequence[Job], key: bytes) -> list[Described | Unreadable]:
    """Describe each job's path; `key` is the folder's block id key."""
    return [_describe(fs, job, key) for job in jobs]


def _describe(fs: FileSystem, job: Job, key: bytes) -> Described | Unreadable:
    try:
        if job.kind is StatKind.SYMLINK:
            return _describe_symlink(fs, job.path)
        with fs.open_read(job.path) as handle:
            found = describe_file(handle, key, previous=job.previous, blocks=job.blocks)
    except FileChangedError as error:
        return Unreadable(str(error), changing=True)
    except ValueError as error:
        return Unreadable(f"not synced: {error}")
    except OSError as error:
        why = f"cannot be read ({error.strerror}); it is left as it is and tried again"
        return Unreadable(why, gone=is_gone(error))
    return Described(found.draft, found.stat, found.blocks, found.nodes)


def _describe_symlink(fs: FileSystem, path: str) -> Described | Unreadable:
    before = fs.lstat(path)
    target = fs.readlink(path)
    if fs.lstat(path) != before:
        return Unreadable("it changed while it was read", changing=True)
    try:
        target.encode()
    except UnicodeEncodeError:
        return Unreadable("not synced: its target is not valid UTF-8")
    return Described(Draft(Kind.SYMLINK, target=target), before)
