"""Reads files in a worker thread and describes their content; one bad file stays one bad file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crdt.actions import Draft
from crdt.slot import Content, Kind
from node.blocks.scan_file import FileChangedError, describe_file
from node.files.port import FileSystem, StatKind
from node.files.scanner import is_gone
from node.sync.observed import Described


@dataclass(frozen=True, slots=True)
class Job:
    """A path to read; `previous` is the content that it had when last agreed."""

    path: str
    kind: StatKind
    previous: Content | None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a path could not be described. `gone` and `changing` are no warnings, only news."""

    reason: str
    gone: bool = False
    changing: bool = False
