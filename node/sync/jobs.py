"""What `node.sync.apply` holds in memory: jobs, rounds of them, and what waits."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from crdt.ids import ItemId
from crdt.slot import Content
from crdt.tree import ViewRow
from node.files import applier
from node.index.disk_rows import DiskRow
from node.sync.assemble import Assembled


@dataclass(slots=True)
class Waiting:
    """Why an item is not done, and when to look again."""

    reason: str
    retry_at: float
    delay_s: float
    quiet: bool  # a matter of milliseconds, not for people to see


@dataclass(slots=True)
class Assembly:
    """A content on its way in."""

    content: Content
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


@dataclass(slots=True)
class Job:
    """One item's next step."""

    item: ItemId
    shown: ViewRow | None
    row: DiskRow | None
    work: applier.Job
    assembled: Assembled | None = None


@dataclass(slots=True)
class Round:
    """What one look at the pending items found."""

    seen: set[ItemId] = field(default_factory=set)
    starved: int = 0  # files that wait for a free place among the assemblies
    jobs: list[Job] = field(default_factory=list)
    moves: list[Job] = field(default_factory=list)  # of directories: one at a time
    blocked: list[DiskRow] = field(default_factory=list)  # they lie where something else belongs

    @property
    def size(self) -> int:
        """Jobs that can be done now."""
        return len(self.jobs) + len(self.moves)
