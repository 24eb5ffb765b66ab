"""What a scan found, in the words of the disk rows: the input of `node.sync.commit`.

Each value carries the stat that held before the content was read and still after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from crdt.actions import Draft
from crdt.ids import BlockId, ItemId
from crdt.slot import BlockRef, Kind, content_body, content_digest
from node.files.port import Stat
from node.index.disk_rows import DiskRow


@dataclass(frozen=True)
class Described:
    """A file's, symlink's or directory's content, as read from the disk."""

    draft: Draft
    stat: Stat
    blocks: tuple[tuple[BlockRef, int], ...] = ()  # each data block and its offset in bytes
    nodes: Mapping[BlockId, bytes] = field(default_factory=dict)  # manifest nodes by id

    @cached_property
    def digest(self) -> bytes:
        """`Content.digest` of a content with these bytes."""
        draft = self.draft
        body = content_body(draft.inline, draft.manifest, draft.target)
        return content_digest(draft.kind, draft.size, body)


def described_directory(stat: Stat) -> Described:
    """A directory has no content but its kind."""
    return Described(Draft(Kind.DIRECTORY), stat)


@dataclass(frozen=True, slots=True)
class Created:
    """Something new at `name` in `parent`; `item` is fresh, or what the view already shows
    there.
    """

    item: ItemId
    parent: ItemId
    name: str
    described: Described
    shown_name: str = ""  # what the tree is to call it, where that is not what this disk does


@dataclass(frozen=True, slots=True)
class Edited:
    """Other content, executable bit or mtime where `row` lay."""

    row: DiskRow
    described: Described


@dataclass(frozen=True, slots=True)
class Moved:
    """What `row` describes lies somewhere else now, with the same content."""

    row: DiskRow
    parent: ItemId
    name: str
    stat: Stat
    shown_name: str = ""  # as in `Created`


@dataclass(frozen=True, slots=True)
class Deleted:
    """A successful listing of its directory no longer shows `row`."""

    row: DiskRow


@dataclass(frozen=True, slots=True)
class Touched:
    """Same content as `row` says; only inode or ctime are other."""

    row: DiskRow
    stat: Stat


Observed = Created | Edited | Moved | Deleted | Touched
