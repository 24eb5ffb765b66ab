"""The relay's storage port: everything that a relay keeps, and nothing about how.

`node.relay.sqlite_storage` is the embedded one (SQLite and packed files). A second one, PostgreSQL
and an object store for a fleet of relays, has to pass `tests/conformance/test_relay_storage.py`.

What every storage promises:
- What a call has returned for is durable, across kill -9 and power cuts; a call that raised has
  changed nothing that counts.
- Entries of one folder keep the order in which they were appended, which is a causal order.
- A block is checked against its hash whenever it is read. One that is not sound is never returned.
- A folder's `Place` counts its deposits; its generation changes when a block is there no more.

Concurrency: one trio loop; a call may run beside any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from crdt.entry import Entry, LogPosition
from crdt.errors import WorldError
from crdt.ids import BlockId, DeviceId, FolderId
from crdt.version_vector import VersionVector
from transport.relay_messages import Place
from transport.session import LogEntry

DROP_GRACE_S: Final = 7 * 24 * 3600  # between a signed drop and the deletion
# What is collected begins a new generation, so that members offer everything again (32 bytes a
# block): a drop by somebody who was wrong is found while others still have the block. So that this
# costs little beside what it frees, a folder is collected once so much of it may go.
COLLECT_SHARE: Final = 1 / 64


class StorageFullError(WorldError):
    """The relay's disk has no room. Nothing was stored."""

    exit_code = 30


@dataclass(frozen=True, slots=True)
class Deposit:
    """A sealed block and the statement of who deposited it."""

    block: BlockId
    sealed: bytes = field(repr=False)
    digest: bytes
    depositor: DeviceId
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one folder takes: counts, and bytes as they came over the wire."""

    entries: int = 0
    entry_bytes: int = 0
    blocks: int = 0
    block_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Entries and blocks."""
        return self.entry_bytes + self.block_bytes


@dataclass(frozen=True, slots=True)
class StoredFolder:
    """What a relay must know of a folder before it serves it."""

    folder: FolderId
    sponsor: DeviceId
    positions: Mapping[DeviceId, LogPosition]
    roster: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """One step of a scrub: how much was read, and what was damaged and is forgotten now. `after`
    is where to go on; empty at the end.
    """

    blocks: int
    size: int
    lost: tuple[tuple[FolderId, BlockId], ...]
    after: bytes


class Storage(Protocol):
    """See the module."""

    async def folders(self) -> list[FolderId]:
        """Every folder that is kept here."""
        ...

    async def host(self, folder: FolderId, sponsor: DeviceId) -> None:
        """Keep a folder from now on; `sponsor` brought it. Again, nothing happens."""
        ...

    async def load(self, folder: FolderId) -> StoredFolder:
        """What is known of a hosted folder."""
        ...

    # --- entries --------------------------------------------------------------------------------

    async def append(self, folder: FolderId, entries: Sequence[Entry]) -> None:
        """Store accepted entries, all or none; the caller has judged them.

        Raises:
            StorageFullError: no room.
        """
        ...

    async def hashes(
        self, folder: FolderId, places: Iterable[tuple[DeviceId, int]]
    ) -> dict[tuple[DeviceId, int], bytes]:
        """The hashes of those of these entries that are here."""
        ...

    async def entries(
        self, folder: FolderId, after: VersionVector, size_max: int
    ) -> list[LogEntry]:
        """What `after` lacks, in the order of acceptance: up to `size_max` bytes, one at least."""
        ...

    # --- blocks ---------------------------------------------------------------------------------

    async def place(self, folder: FolderId) -> Place:
        """How far the folder's deposits have got."""
        ...

    async def continues(self, folder: FolderId, place: Place) -> bool:
        """True when everything that was stored at `place` still is."""
        ...

    async def lacking(self, folder: FolderId, blocks: Iterable[BlockId]) -> set[BlockId]:
        """Those of the blocks that are not here. The others are wanted: a drop of one is undone."""
        ...

    async def held(self, folder: FolderId, blocks: Iterable[BlockId]) -> set[BlockId]:
        """Those of the blocks that are here; nothing is changed."""
        ...

    async def put(self, folder: FolderId, deposits: Sequence[Deposit]) -> Place:
        """Store deposits, those that are not here yet; all or none of what is new. A drop of one
        that is here is undone.

        Raises:
            StorageFullError: no room.
        """
        ...

    async def get(self, folder: FolderId, block: BlockId) -> Deposit | None:
        """A block, checked against its hash; None when it is not here, or was damaged. Then it
        counts as lost.
        """
        ...

    async def listed(self, folder: FolderId, after: bytes, count_max: int) -> list[BlockId]:
        """The blocks that are here and not dropped, from behind `after` on, in order of id."""
        ...

    async def drop(self, folder: FolderId, blocks: Sequence[BlockId], *, now_s: int) -> int:
        """Note that these blocks are needed no more; returns how many of them were here. They are
        deleted by `collect` once the grace period is over.
        """
        ...

    async def usage(self, folder: FolderId) -> Usage:
        """What the folder takes."""
        ...

    async def usage_by_device(self, folder: FolderId) -> dict[DeviceId, int]:
        """Bytes of blocks by who deposited them."""
        ...

    # --- upkeep ---------------------------------------------------------------------------------

    async def scrub(self, after: bytes, size_max: int) -> Scrubbed:
        """Read and check blocks, up to `size_max` bytes, from where the last step ended; b"" is
        the beginning. What is damaged counts as lost.
        """
        ...

    async def collect(self, *, before_s: int) -> Mapping[FolderId, int]:
        """Delete what was dropped at `before_s` or earlier, and give its room back; returns how
        many blocks went, for each folder that lost any. A folder of which that would be less than
        `COLLECT_SHARE` waits until it is worth it.
        """
        ...
