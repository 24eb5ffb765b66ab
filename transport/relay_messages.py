"""What members and a relay say to each other beside what all nodes say (`transport.messages`).

Pure; values that check themselves. `Host` opens a stream on which a folder is brought to a relay,
`OpenDeposits` one on which a member deposits sealed blocks. docs/relay.md has the conversations.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

from crdt.ids import BLOCK_ID_SIZE, BlockId, DeviceId, FolderId
from crdt.roster_ops import check_device_name
from crdt.seal import SIGNATURE_SIZE
from crdt.version_vector import COUNTER_MAX, VersionVector
from transport.fields import (
    PROTOCOL_VERSION,
    REQUEST_MAX,
    SEALED_BLOCK_SIZE_MAX,
    WANT_MAX,
    BlockList,
    check_range,
    check_text,
    check_version,
    get,
    get_all,
)

TOKEN_SIZE_MAX: Final = 128  # bytes
RELAYS_MAX: Final = 8  # that are spoken of at once
LISTED_MAX: Final = 1_000  # block ids in one answer
GENERATION_SIZE: Final = 16
MARK_SIZE: Final = 16

_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Here(BlockList):
    """Blocks that were `Missing` on this stream have come meanwhile; `request` is 0."""

    type: ClassVar[int] = 22
    size_max: ClassVar[int] = 4 * _KIB


@dataclass(frozen=True, slots=True)
class Host:
    """First on a stream to a relay: please keep this folder. `token` is the relay's, or empty."""

    folder: FolderId
    token: str = field(default="", repr=False)
    type: ClassVar[int] = 48
    size_max: ClassVar[int] = 1 * _KIB

    def __post_init__(self) -> None:
        check_text("token", self.token, TOKEN_SIZE_MAX)

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"version": PROTOCOL_VERSION, "folder": self.folder, "token": self.token}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module. Raises VersionError for another protocol version."""
        check_version(wire)
        return cls(FolderId(get(wire, "folder", bytes)), get(wire, "token", str))


@dataclass(frozen=True, slots=True)
class Hosting:
    """Answer to `Host`: the folder is welcome. `name` is the relay's, for people."""

    name: str
    type: ClassVar[int] = 49
    size_max: ClassVar[int] = 1 * _KIB

    def __post_init__(self) -> None:
        check_device_name(self.name)

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"name": self.name}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        return cls(get(wire, "name", str))


@dataclass(frozen=True, slots=True)
class Notice:
    """On a control stream, for the person: why the relay takes nothing more; empty: it does again.

    Optional: a node that does not know it passes it over.
    """

    full: str
    type: ClassVar[int] = 128
    size_max: ClassVar[int] = 1 * _KIB

    def __post_init__(self) -> None:
        check_text("full", self.full, 200)

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"full": self.full}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        return cls(get(wire, "full", str))


@dataclass(frozen=True, slots=True)
class Seen:
    """On a control stream between members: what each relay last told to have. Optional."""

    relays: Mapping[DeviceId, VersionVector]
    type: ClassVar[int] = 129
    size_max: ClassVar[int] = 64 * _KIB

    def __post_init__(self) -> None:
        if len(self.relays) > RELAYS_MAX:
            raise ValueError(f"at most {RELAYS_MAX} relays")

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        pairs = [[relay, have.to_wire()] for relay, have in sorted(self.relays.items())]
        return {"relays": pairs}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        found: dict[DeviceId, VersionVector] = {}
        for pair in get_all(wire, "relays", list, RELAYS_MAX):
            match pair:
                case [bytes(relay), have]:
                    found[DeviceId(relay)] = VersionVector.from_wire(have)
                case _:
                    raise ValueError("'relays' holds [device, have] pairs")
        return cls(found)


@dataclass(frozen=True, slots=True)
class Place:
    """How far a relay's deposits for one folder have got.

    Deposits are numbered; `mark` is chained over all of them, so two histories never share one.
    `generation` changes whenever something that was deposited is there no more.
    """

    generation: bytes = bytes(GENERATION_SIZE)
    number: int = 0
    mark: bytes = bytes(MARK_SIZE)

    def __post_init__(self) -> None:
        check_range("number", self.number, COUNTER_MAX)
        if len(self.generation) != GENERATION_SIZE or len(self.mark) != MARK_SIZE:
            raise ValueError("a generation and a mark have 16 bytes")

    def to_wire(self) -> list[Any]:
        """[generation, number, mark]."""
        return [self.generation, self.number, self.mark]

    @classmethod
    def from_wire(cls, wire: object) -> Self:
        """Strictly parse `to_wire`; raises ValueError."""
        match wire:
            case [bytes(generation), int(number), bytes(mark)]:
                return cls(generation, number, mark)
            case _:
                raise ValueError("a place is a generation, a number and a mark")


@dataclass(frozen=True, slots=True)
class OpenDeposits:
    """First on a deposit stream. `place` is where its sender last knew the relay to be."""

    folder: FolderId
    place: Place
    type: ClassVar[int] = 64
    size_max: ClassVar[int] = 1 * _KIB

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        place = self.place.to_wire()
        return {"version": PROTOCOL_VERSION, "folder": self.folder, "place": place}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module. Raises VersionError for another protocol version."""
        check_version(wire)
        return cls(FolderId(get(wire, "folder", bytes)), Place.from_wire(wire.get("place")))


@dataclass(frozen=True, slots=True)
class Depot:
    """Answer to `OpenDeposits`. `continues`: all that was stored at the sender's place still is."""

    place: Place
    continues: bool
    type: ClassVar[int] = 65
    size_max: ClassVar[int] = 1 * _KIB

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"place": self.place.to_wire(), "continues": self.continues}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        return cls(Place.from_wire(wire.get("place")), get(wire, "continues", bool))


@dataclass(frozen=True, slots=True)
class Offer(BlockList):
    """Which of these blocks do you lack? They are needed by what we have."""

    type: ClassVar[int] = 66
    size_max: ClassVar[int] = 4 * _KIB


@dataclass(frozen=True, slots=True)
class Lacking(BlockList):
    """Answer to `Offer`: these, perhaps none. `full` says why none of them can be taken now."""

    full: str = ""
    type: ClassVar[int] = 67
    size_max: ClassVar[int] = 4 * _KIB
    count_min: ClassVar[int] = 0

    def __post_init__(self) -> None:
        # Slotted dataclasses are made anew, so a bare super() would look into the old class.
        BlockList.__post_init__(self)
        check_text("full", self.full, 200)

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {**BlockList.to_wire(self), "full": self.full}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        blocks = tuple(BlockId(block) for block in get_all(wire, "blocks", bytes, WANT_MAX))
        return cls(get(wire, "request", int), blocks, get(wire, "full", str))


@dataclass(frozen=True, slots=True)
class Put:
    """A block that was lacking, sealed, with its depositor's statement (`crdt.deposit`).

    With nothing sealed: its sender has the block no more, and nobody waits for it.
    """

    request: int
    block: BlockId
    sealed: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    type: ClassVar[int] = 68
    size_max: ClassVar[int] = SEALED_BLOCK_SIZE_MAX + 256

    def __post_init__(self) -> None:
        check_range("request", self.request, REQUEST_MAX)
        if len(self.sealed) > SEALED_BLOCK_SIZE_MAX:
            raise ValueError(f"a sealed block has at most {SEALED_BLOCK_SIZE_MAX} bytes")
        if len(self.signature) != (SIGNATURE_SIZE if self.sealed else 0):
            raise ValueError(f"a signature has {SIGNATURE_SIZE} bytes")

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {
            "request": self.request,
            "block": self.block,
            "sealed": self.sealed,
            "signature": self.signature,
        }

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        block = BlockId(get(wire, "block", bytes))
        sealed, signature = get(wire, "sealed", bytes), get(wire, "signature", bytes)
        return cls(get(wire, "request", int), block, sealed, signature)


@dataclass(frozen=True, slots=True)
class Stored:
    """All that was put for this request is durable, and so is the relay's place.

    `full`: it is not, for this reason; what was put is not stored.
    """

    request: int
    place: Place
    full: str = ""
    type: ClassVar[int] = 69
    size_max: ClassVar[int] = 1 * _KIB

    def __post_init__(self) -> None:
        check_range("request", self.request, REQUEST_MAX)
        check_text("full", self.full, 200)

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"request": self.request, "place": self.place.to_wire(), "full": self.full}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        place = Place.from_wire(wire.get("place"))
        return cls(get(wire, "request", int), place, get(wire, "full", str))


@dataclass(frozen=True, slots=True)
class Drop:
    """Nothing up to `have` needs these blocks any more; signed (`crdt.deposit`)."""

    blocks: tuple[BlockId, ...]
    have: VersionVector
    signature: bytes = field(repr=False)
    type: ClassVar[int] = 70
    size_max: ClassVar[int] = 64 * _KIB

    def __post_init__(self) -> None:
        if not 1 <= len(self.blocks) <= WANT_MAX:
            raise ValueError(f"a message names 1 to {WANT_MAX} blocks")
        if len(self.signature) != SIGNATURE_SIZE:
            raise ValueError(f"a signature has {SIGNATURE_SIZE} bytes")

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {
            "blocks": list(self.blocks),
            "have": self.have.to_wire(),
            "signature": self.signature,
        }

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        blocks = tuple(BlockId(block) for block in get_all(wire, "blocks", bytes, WANT_MAX))
        have = VersionVector.from_wire(wire.get("have"))
        return cls(blocks, have, get(wire, "signature", bytes))


@dataclass(frozen=True, slots=True)
class List:
    """Which blocks do you keep that nobody has dropped? In order of id, those behind `after`."""

    after: bytes = b""
    type: ClassVar[int] = 71
    size_max: ClassVar[int] = 1 * _KIB

    def __post_init__(self) -> None:
        if len(self.after) > BLOCK_ID_SIZE:
            raise ValueError("'after' is a block id, or empty")

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"after": self.after}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        return cls(get(wire, "after", bytes))


@dataclass(frozen=True, slots=True)
class Listed:
    """Answer to `List`: the next ones; none at the end."""

    blocks: tuple[BlockId, ...]
    type: ClassVar[int] = 72
    size_max: ClassVar[int] = 64 * _KIB

    def __post_init__(self) -> None:
        if len(self.blocks) > LISTED_MAX:
            raise ValueError(f"a list names up to {LISTED_MAX} blocks")
        if any(one >= other for one, other in itertools.pairwise(self.blocks)):
            raise ValueError("a list is in order of block id")

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"blocks": list(self.blocks)}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        return cls(tuple(BlockId(block) for block in get_all(wire, "blocks", bytes, LISTED_MAX)))
