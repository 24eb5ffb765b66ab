"""Slots: one device's word on one item. The tree's whole state is a map `(item, device) -> Slot`.

Merging two states keeps, key by key, the slot with the greater counter; only `device` ever writes
its slots, and its counters only grow, so that is commutative, associative and idempotent. The
counter of a slot is the `seq` of the entry that wrote it. Everything else follows in `crdt.tree`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import blake3

from crdt.codec import pack
from crdt.ids import BlockId, DeviceId, ItemId
from crdt.version_vector import COUNTER_MAX, VersionVector

PLACEMENTS_MAX: Final = 4  # enough to fall back through three cycles; then `Recovered/`
NAME_SIZE_MAX: Final = 255  # bytes of UTF-8; what Linux file systems hold
TARGET_SIZE_MAX: Final = 4095  # bytes; PATH_MAX less its NUL
INLINE_SIZE_MAX: Final = 4096  # bytes; smaller files travel in their entry (DESIGN section 7)
MANIFEST_TOP_MAX: Final = 16  # block references in the slot itself; longer lists become blocks
MANIFEST_DEPTH_MAX: Final = 5  # 16 * 64**5 blocks: beyond any file
FILE_SIZE_MAX: Final = 2**53
MTIME_NS_MAX: Final = 2**63 - 1
RESERVED_NAME: Final = ".shoal"


class Kind(enum.IntEnum):
    """What an item is; fixed for its life. Replacing a file by a directory makes a new item."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3


class Profile(enum.IntEnum):
    """How a file is cut into blocks; chosen once and kept for the file's life (DESIGN section
    7).
    """

    SMALL = 1  # FastCDC 16/64/256 KiB: files below 4 GiB
    LARGE = 2  # FastCDC 256 KiB/1 MiB/4 MiB
    FIXED = 3  # 64 KiB: databases and disk images


def check_name(name: str) -> None:
    """Raise ValueError unless `name` may stand in the tree: one path component, valid UTF-8, not
    ours.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError("a name must be valid UTF-8") from None
    if not 0 < size <= NAME_SIZE_MAX:
        raise ValueError(f"a name has 1 to {NAME_SIZE_MAX} bytes, this one has {size}")
    if name in {".", ".."} or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} cannot be a name")
    if name.casefold() == RESERVED_NAME:
        raise ValueError(f"{name!r} is reserved")


def _check_range(what: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} must be an integer in {low}..{high}, got {value!r}")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a device put an item: `name` in directory `parent`, at `lamport` of that device."""

    lamport: int
    parent: ItemId
    name: str

    def __post_init__(self) -> None:
        _check_range("lamport", self.lamport, 1, COUNTER_MAX)
        check_name(self.name)


@dataclass(frozen=True, slots=True)
class BlockRef:
    """One block of a manifest: its id and its length in bytes of plaintext."""

    block: BlockId
    length: int

    def __post_init__(self) -> None:
        _check_range("block length", self.length, 1, 4 * 1024 * 1024)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The top of a file's block list. At depth 0 `blocks` are the data; deeper, they are manifest
    nodes.
    """

    profile: Profile
    depth: int
    blocks: tuple[BlockRef, ...]

    def __post_init__(self) -> None:
        _check_range("manifest depth", self.depth, 0, MANIFEST_DEPTH_MAX)
        if not 1 <= len(self.blocks) <= MANIFEST_TOP_MAX:
            raise ValueError(
                f"a manifest's top has 1 to {MANIFEST_TOP_MAX} blocks, got {len(self.blocks)}"
            )


@dataclass(frozen=True)
class Content:
    """One content version of an item.

    `version` says which writes it has seen (itself included); `device` and `lamport` say who wrote
    it and when in logical time; `origin` is the write that made these very bytes: for a change of
    metadata alone (mtime, executable) it is the origin of what stood before, so that a `touch`
    never competes with an edit (see `crdt.tree`). Exactly one of `inline`, `manifest` is set for a
    file; `target` for a symlink; none for a directory.
    """

    version: VersionVector
    device: DeviceId
    lamport: int
    kind: Kind
    origin: tuple[DeviceId, int]
    size: int = 0
    mtime_ns: int = 0
    executable: bool = False
    inline: bytes | None = None
    manifest: Manifest | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        _check_range("lamport", self.lamport, 1, COUNTER_MAX)
        _check_range("size", self.size, 0, FILE_SIZE_MAX)
        _check_range("mtime_ns", self.mtime_ns, -MTIME_NS_MAX, MTIME_NS_MAX)
        if not self.version.covers(self.device, 1):
            raise ValueError("a version counts the write that made it")
        _check_range("origin", self.origin[1], 1, COUNTER_MAX)
        if not self.version.covers(*self.origin):
            raise ValueError("a version has seen its origin")
        present = (self.inline is not None, self.manifest is not None, self.target is not None)
        allowed = {
            Kind.FILE: {(True, False, False), (False, True, False)},
            Kind.DIRECTORY: {(False, False, False)},
            Kind.SYMLINK: {(False, False, True)},
        }
        if present not in allowed[self.kind]:
            raise ValueError(f"a {self.kind.name.lower()} cannot hold that kind of content")
        if self.inline is not None and not len(self.inline) == self.size <= INLINE_SIZE_MAX:
            raise ValueError("inline content must have the stated size, at most 4096 bytes")
        if self.manifest is not None and self.manifest.depth == 0:
            total = sum(ref.length for ref in self.manifest.blocks)
            if total != self.size:
                raise ValueError(f"block lengths add up to {total}, the size says {self.size}")
        if self.target is not None and (
            "\0" in self.target
            or not 0 < len(self.target.encode(errors="replace")) <= TARGET_SIZE_MAX
        ):
            raise ValueError(f"a symlink target has 1 to {TARGET_SIZE_MAX} bytes and no NUL")
        if self.kind is not Kind.FILE and (self.size or self.mtime_ns or self.executable):
            raise ValueError("only files carry size, mtime and the executable bit")

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that are equal for equal bytes of the same kind; metadata and authorship do not
        count.
        """
        return content_digest(self.kind, self.size, self._body())

    def same_bytes(self, other: Content) -> bool:
        """True when kind and bytes (or target) are equal."""
        return self.digest == other.digest

    def _body(self) -> object:
        return content_body(self.inline, self.manifest, self.target)

    def to_wire(self) -> list[Any]:
        """The list that `from_wire` reads; docs/protocol.md has its layout."""
        return [
            self.version.to_wire(),
            self.device,
            self.lamport,
            int(self.kind),
            [self.origin[0], self.origin[1]],
            self.size,
            self.mtime_ns,
            self.executable,
            self._body(),
        ]

    @classmethod
    def from_wire(cls, wire: object) -> Content:
        """Strictly parse `to_wire`'s list; raises ValueError on anything else."""
        match wire:
            case [
                version,
                bytes(device),
                int(lamport),
                int(kind),
                [bytes(origin), int(origin_counter)],
                *rest,
            ]:
                pass
            case _:
                raise ValueError("malformed content")
        match rest:
            case [int(size), int(mtime_ns), bool(executable), body]:
                pass
            case _:
                raise ValueError("malformed content")
        _check_range("kind", kind, min(Kind), max(Kind))  # True would pass for 1
        inline, manifest, target = _parse_body(Kind(kind), body)
        return cls(
            version=VersionVector.from_wire(version),
            device=DeviceId(device),
            lamport=lamport,
            kind=Kind(kind),
            origin=(DeviceId(origin), origin_counter),
            size=size,
            mtime_ns=mtime_ns,
            executable=executable,
            inline=inline,
            manifest=manifest,
            target=target,
        )


def content_body(inline: bytes | None, manifest: Manifest | None, target: str | None) -> object:
    """What stands for a content's bytes on the wire and in its digest."""
    if manifest is not None:
        refs = [[ref.block, ref.length] for ref in manifest.blocks]
        return [int(manifest.profile), manifest.depth, refs]
    return inline if inline is not None else target


def content_digest(kind: Kind, size: int, body: object) -> bytes:
    """32 bytes that are equal for equal bytes of the same kind; `body` is `content_body`'s."""
    return blake3.blake3(pack([int(kind), size, body])).digest()


def _parse_body(kind: Kind, body: object) -> tuple[bytes | None, Manifest | None, str | None]:
    match kind, body:
        case Kind.FILE, bytes(inline):
            return inline, None, None
        case Kind.FILE, [int(profile), int(depth), list(refs)]:
            _check_range("profile", profile, min(Profile), max(Profile))
            return None, Manifest(Profile(profile), depth, parse_refs(refs)), None
        case Kind.DIRECTORY, None:
            return None, None, None
        case Kind.SYMLINK, str(target):
            return None, None, target
        case _:
            pass
    raise ValueError(f"a {kind.name.lower()} cannot hold that kind of content")


def parse_refs(wire: list[object]) -> tuple[BlockRef, ...]:
    """Strictly parse `[[block, length], ...]`; raises ValueError on anything else."""
    refs = []
    for pair in wire:
        match pair:
            case [bytes(block), int(length)]:
                refs.append(BlockRef(BlockId(block), length))
            case _:
                raise ValueError("a manifest holds [block id, length] pairs")
    return tuple(refs)


@dataclass(frozen=True, slots=True)
class Slot:
    """One device's word on one item.

    `placements` newest first, at most 4; `content` None when this device never wrote any;
    `deleted` maps each device to the counter of its slot of this item that the deleter had seen,
    its own slot's counter included.
    """

    counter: int
    placements: tuple[Placement, ...] = ()
    content: Content | None = None
    deleted: VersionVector | None = None

    def __post_init__(self) -> None:
        _check_range("counter", self.counter, 1, COUNTER_MAX)
        if len(self.placements) > PLACEMENTS_MAX:
            raise ValueError(f"a slot keeps at most {PLACEMENTS_MAX} placements")
        lamports = [placement.lamport for placement in self.placements]
        if any(newer <= older for newer, older in pairwise(lamports)):
            raise ValueError("placements go from the newest to the oldest")

    def to_wire(self) -> list[Any]:
        """The list that `from_wire` reads; docs/protocol.md has its layout."""
        return [
            self.counter,
            [[p.lamport, p.parent, p.name] for p in self.placements],
            None if self.content is None else self.content.to_wire(),
            None if self.deleted is None else self.deleted.to_wire(),
        ]

    @classmethod
    def from_wire(cls, wire: object) -> Slot:
        """Strictly parse `to_wire`'s list; raises ValueError on anything else."""
        match wire:
            case [int(counter), list(placements), content, deleted] if (
                len(placements) <= PLACEMENTS_MAX
            ):
                pass
            case _:
                raise ValueError("malformed slot")
        parsed = []
        for placement in placements:
            match placement:
                case [int(lamport), bytes(parent), str(name)]:
                    parsed.append(Placement(lamport, ItemId(parent), name))
                case _:
                    raise ValueError("malformed placement")
        return cls(
            counter=counter,
            placements=tuple(parsed),
            content=None if content is None else Content.from_wire(content),
            deleted=None if deleted is None else VersionVector.from_wire(deleted),
        )


def merge(mine: Slot | None, theirs: Slot) -> Slot:
    """The slot that a node keeps for one `(item, device)`: the one with the greater counter."""
    return theirs if mine is None or theirs.counter > mine.counter else mine
