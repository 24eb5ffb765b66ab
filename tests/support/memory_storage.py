"""The relay's storage in memory: for tests, and as a second implementation of the port."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import blake3

from crdt.deposit import sealed_hash
from crdt.entry import Entry, EntryKind, LogPosition
from crdt.ids import BlockId, DeviceId, FolderId
from crdt.version_vector import VersionVector
from node.relay.storage import COLLECT_SHARE, Deposit, Scrubbed, StoredFolder, Usage
from transport.relay_messages import MARK_SIZE, Place
from transport.session import LogEntry


@dataclass
class _Folder:
    sponsor: DeviceId
    place: Place
    log: list[Entry] = field(default_factory=list)
    blocks: dict[BlockId, Deposit] = field(default_factory=dict)
    marks: dict[int, tuple[BlockId, bytes]] = field(default_factory=dict)
    dropped: dict[BlockId, int] = field(default_factory=dict)


class MemoryStorage:
    """See `node.relay.storage.Storage`."""

    def __init__(self) -> None:
        self._folders: dict[FolderId, _Folder] = {}
        self._generations = itertools.count(1)
        self.on_lost: Callable[[FolderId], None] = lambda _: None

    def _generation(self) -> bytes:
        return next(self._generations).to_bytes(16, "big")

    async def folders(self) -> list[FolderId]:
        return list(self._folders)

    async def host(self, folder: FolderId, sponsor: DeviceId) -> None:
        self._folders.setdefault(folder, _Folder(sponsor, Place(self._generation())))

    async def load(self, folder: FolderId) -> StoredFolder:
        found = self._folders[folder]
        positions: dict[DeviceId, LogPosition] = {e.header.device: e.position for e in found.log}
        roster = [e for e in found.log if e.header.kind is EntryKind.ROSTER]
        return StoredFolder(folder, found.sponsor, positions, roster)

    async def append(self, folder: FolderId, entries: Sequence[Entry]) -> None:
        self._folders[folder].log += entries

    async def hashes(
        self, folder: FolderId, places: Iterable[tuple[DeviceId, int]]
    ) -> dict[tuple[DeviceId, int], bytes]:
        known = {(e.header.device, e.header.seq): e.hash for e in self._folders[folder].log}
        return {place: known[place] for place in places if place in known}

    async def entries(
        self, folder: FolderId, after: VersionVector, size_max: int
    ) -> list[LogEntry]:
        found: list[LogEntry] = []
        total = 0
        for entry in self._folders[folder].log:
            header, data = entry.header, entry.to_bytes()
            if after.covers(header.device, header.seq):
                continue
            total += len(data)
            if found and total > size_max:
                break
            found.append(LogEntry(header.device, header.seq, data))
        return found

    async def place(self, folder: FolderId) -> Place:
        return self._folders[folder].place

    async def continues(self, folder: FolderId, place: Place) -> bool:
        found = self._folders[folder]
        if place.generation != found.place.generation:
            return False
        return place.number == 0 or found.marks.get(place.number, (None, b""))[1] == place.mark

    async def lacking(self, folder: FolderId, blocks: Iterable[BlockId]) -> set[BlockId]:
        found, asked = self._folders[folder], set(blocks)
        for block in asked:
            found.dropped.pop(block, None)
        return asked - found.blocks.keys()

    async def held(self, folder: FolderId, blocks: Iterable[BlockId]) -> set[BlockId]:
        return set(blocks) & self._folders[folder].blocks.keys()

    async def put(self, folder: FolderId, deposits: Sequence[Deposit]) -> Place:
        found = self._folders[folder]
        for one in deposits:
            found.dropped.pop(one.block, None)
            if one.block not in found.blocks:
                place = found.place
                mark = blake3.blake3(place.mark + one.block + one.digest).digest(MARK_SIZE)
                found.place = Place(place.generation, place.number + 1, mark)
                found.marks[found.place.number] = one.block, mark
                found.blocks[one.block] = one
        return found.place

    async def get(self, folder: FolderId, block: BlockId) -> Deposit | None:
        found = self._folders[folder].blocks.get(block)
        if found is not None and sealed_hash(found.sealed) != found.digest:
            self._lose(folder, block)
            self.on_lost(folder)
            return None
        return found

    def _lose(self, folder: FolderId, block: BlockId) -> None:
        found = self._folders[folder]
        del found.blocks[block]
        found.dropped.pop(block, None)
        found.place = replace(found.place, generation=self._generation())

    async def listed(self, folder: FolderId, after: bytes, count_max: int) -> list[BlockId]:
        found = self._folders[folder]
        return [b for b in sorted(found.blocks) if b > after and b not in found.dropped][:count_max]

    async def drop(self, folder: FolderId, blocks: Sequence[BlockId], *, now_s: int) -> int:
        found = self._folders[folder]
        new = [b for b in blocks if b in found.blocks and b not in found.dropped]
        found.dropped |= dict.fromkeys(new, now_s)
        return len(new)

    async def usage(self, folder: FolderId) -> Usage:
        found = self._folders[folder]
        sizes = [len(entry.to_bytes()) for entry in found.log]
        blocks = [len(one.sealed) for one in found.blocks.values()]
        return Usage(len(sizes), sum(sizes), len(blocks), sum(blocks))

    async def usage_by_device(self, folder: FolderId) -> dict[DeviceId, int]:
        sizes: dict[DeviceId, int] = {}
        for one in self._folders[folder].blocks.values():
            sizes[one.depositor] = sizes.get(one.depositor, 0) + len(one.sealed)
        return sizes

    async def scrub(self, after: bytes, size_max: int) -> Scrubbed:
        bad = [
            (folder, block)
            for folder, found in self._folders.items()
            for block, one in found.blocks.items()
            if sealed_hash(one.sealed) != one.digest
        ]
        count = sum(len(found.blocks) for found in self._folders.values())
        for folder, block in bad:
            self._lose(folder, block)
            self.on_lost(folder)
        return Scrubbed(count, 0, tuple(bad), b"")

    async def collect(self, *, before_s: int) -> dict[FolderId, int]:
        gone: dict[FolderId, int] = {}
        for folder, found in self._folders.items():
            ripe = [block for block, at_s in found.dropped.items() if at_s <= before_s]
            total = sum(len(one.sealed) for one in found.blocks.values())
            if not ripe or sum(len(found.blocks[b].sealed) for b in ripe) < COLLECT_SHARE * total:
                continue
            for block in ripe:
                self._lose(folder, block)
            gone[folder] = len(ripe)
        return gone

    def corrupt(self, folder: FolderId, block: BlockId) -> None:
        """What a rotten disk does."""
        found = self._folders[folder].blocks
        found[block] = replace(found[block], sealed=b"!" + found[block].sealed[1:])
