"""Every message that two nodes exchange, as values that check themselves.

Pure. A message has one wire form, a canonical msgpack map; `from_wire` raises ValueError on a
missing field, a field of another type or one out of bounds, and leaves fields that it does not know
aside (a newer version may add some). Entries and sealed blocks are opaque bytes here. How messages
become bytes of a stream is `transport.frames`; docs/protocol.md lists them all.

The first message on a stream says what the stream is for: `Hello` a folder's control stream,
`OpenBlocks` a block stream, `Join` a join stream; a relay's own are in `transport.relay_messages`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

from crdt.entry import ENTRY_SIZE_MAX, HASH_SIZE
from crdt.ids import BlockId, DeviceId, FolderId
from crdt.roster_ops import Join as JoinOp
from crdt.roster_ops import check_device_name
from crdt.seal import KEY_SIZE, SIGNATURE_SIZE
from crdt.version_vector import DEVICES_MAX, EMPTY, VersionVector
from transport.admission_messages import Pake, ThisFolder, WhichFolder, Whispered
from transport.fields import (
    HELD_SIZE_MAX,
    PROTOCOL_VERSION,
    REQUEST_MAX,
    SEALED_BLOCK_SIZE_MAX,
    BlockList,
    check_range,
    check_text,
    check_version,
    get,
    get_all,
)
from transport.keeps import Keeps
from transport.relay_messages import (
    Depot,
    Drop,
    Here,
    Host,
    Hosting,
    Lacking,
    List,
    Listed,
    Notice,
    Offer,
    OpenDeposits,
    Put,
    Seen,
    Stored,
)

REASON_SIZE_MAX: Final = 200  # bytes; a sentence, as in a connection's close
CODE_MAX: Final = 0xFFFF  # codes of `transport.link.CloseCode`; a newer peer may know more
ENTRIES_MAX: Final = 1024  # entries in one message; a batch of small ones stays below its size
BATCH_SIZE_MAX: Final = 4 * 1024 * 1024  # bytes of several entries in one message

AGENT_SIZE_MAX: Final = 64  # bytes; program and version, for people who look at logs

_KIB: Final = 1024
_STATE_SIZE_MAX: Final = 192 * _KIB  # two version vectors (45 KB each) and 1,024 hashes (72 KB)
_ENTRIES_SIZE_MAX: Final = ENTRY_SIZE_MAX + 64 * _KIB  # one of the largest, or a batch


Heads = Mapping[DeviceId, bytes]
"""The hash of each device's last entry, at the seq that the `have` beside it names."""


@dataclass(frozen=True, slots=True)
class Hello:
    """First on a control stream, from both sides: which folder, and who speaks."""

    folder: FolderId
    name: str
    agent: str
    type: ClassVar[int] = 1
    size_max: ClassVar[int] = 1 * _KIB

    def __post_init__(self) -> None:
        check_device_name(self.name)
        check_text("agent", self.agent, AGENT_SIZE_MAX)

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {
            "version": PROTOCOL_VERSION,
            "folder": self.folder,
            "name": self.name,
            "agent": self.agent,
        }

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module. Raises VersionError for another protocol version."""
        check_version(wire)
        folder = FolderId(get(wire, "folder", bytes))
        return cls(folder, get(wire, "name", str), get(wire, "agent", str))


@dataclass(frozen=True, slots=True)
class _State:
    """What a node holds of a folder.

    `have` is what is durable in its log, `complete` the log position whose whole content lies on
    its disk, `heads` the hashes of the last entries.
    """

    have: VersionVector
    complete: VersionVector
    heads: Heads

    def __post_init__(self) -> None:
        if any(device not in self.have for device in self.heads):
            raise ValueError("a head is the last entry of a device in `have`")
        if any(len(head) != HASH_SIZE for head in self.heads.values()):
            raise ValueError(f"a head has {HASH_SIZE} bytes")

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {
            "have": self.have.to_wire(),
            "complete": self.complete.to_wire(),
            "heads": [[device, head] for device, head in sorted(self.heads.items())],
        }


@dataclass(frozen=True, slots=True)
class Have(_State):
    """Second on a control stream, from both sides: all that its sender holds."""

    type: ClassVar[int] = 2
    size_max: ClassVar[int] = _STATE_SIZE_MAX

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        return cls(*_get_state(wire))


@dataclass(frozen=True, slots=True)
class Ack(_State):
    """What changed in its sender's state since it last told; durable before it is sent.

    All three are deltas, to be merged into what was told before. `settled` says how many of the
    receiver's entries, since the last ack, have been dealt with: taken in, or dropped.
    """

    settled: int = 0
    type: ClassVar[int] = 4
    size_max: ClassVar[int] = _STATE_SIZE_MAX

    def __post_init__(self) -> None:
        # Slotted dataclasses are made anew, so a bare super() would look into the old class.
        _State.__post_init__(self)
        check_range("settled", self.settled, REQUEST_MAX)

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {**_State.to_wire(self), "settled": self.settled}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        return cls(*_get_state(wire), get(wire, "settled", int))


@dataclass(frozen=True, slots=True)
class _EntryList:
    """Entries as their authors made them, each after those that it depends on."""

    entries: tuple[bytes, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.entries) <= ENTRIES_MAX:
            raise ValueError(f"a message holds 1 to {ENTRIES_MAX} entries")
        if any(not 0 < len(entry) <= ENTRY_SIZE_MAX for entry in self.entries):
            raise ValueError(f"an entry has 1 to {ENTRY_SIZE_MAX} bytes")

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"entries": list(self.entries)}


@dataclass(frozen=True, slots=True)
class Entries(_EntryList):
    """Entries that the receiver lacks."""

    type: ClassVar[int] = 3
    size_max: ClassVar[int] = _ENTRIES_SIZE_MAX

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        return cls(tuple(get_all(wire, "entries", bytes, ENTRIES_MAX)))


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Why it ends. `code` is a `transport.link.CloseCode`, or one that a newer node knows."""

    code: int
    reason: str

    def __post_init__(self) -> None:
        check_range("code", self.code, CODE_MAX)
        check_text("reason", self.reason, REASON_SIZE_MAX)

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"code": self.code, "reason": self.reason}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        return cls(get(wire, "code", int), get(wire, "reason", str))


@dataclass(frozen=True, slots=True)
class Bye(_Verdict):
    """Last on a control stream: this folder's session ends, the connection may stay."""

    type: ClassVar[int] = 5
    size_max: ClassVar[int] = 1 * _KIB


@dataclass(frozen=True, slots=True)
class OpenBlocks:
    """First on a block stream, from the side that wants blocks."""

    folder: FolderId
    type: ClassVar[int] = 16
    size_max: ClassVar[int] = 1 * _KIB

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"version": PROTOCOL_VERSION, "folder": self.folder}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module. Raises VersionError for another protocol version."""
        check_version(wire)
        return cls(FolderId(get(wire, "folder", bytes)))


@dataclass(frozen=True, slots=True)
class Want(BlockList):
    """Send me these blocks, in this order.

    `held` says of what a single block might be built: hashes of pieces that the asker has. The
    answer may then be `Pieces`.
    """

    held: bytes = field(default=b"", repr=False)
    type: ClassVar[int] = 17
    size_max: ClassVar[int] = 4 * _KIB

    def __post_init__(self) -> None:
        BlockList.__post_init__(self)
        if len(self.held) > HELD_SIZE_MAX:
            raise ValueError(f"hashes of pieces have at most {HELD_SIZE_MAX} bytes")
        if self.held and len(self.blocks) != 1:
            raise ValueError("pieces are held of one block")

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        wire = BlockList.to_wire(self)
        return {**wire, "held": self.held} if self.held else wire

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        asked = BlockList.from_wire(wire)
        held = get(wire, "held", bytes) if "held" in wire else b""
        return cls(asked.request, asked.blocks, held)


@dataclass(frozen=True, slots=True)
class Block:
    """One block that was wanted, sealed.

    A relay, which cannot look into it, adds who deposited it, with that device's statement
    (`crdt.deposit`); both are empty from anybody else.
    """

    request: int
    block: BlockId
    sealed: bytes = field(repr=False)
    depositor: bytes = b""
    signature: bytes = b""
    type: ClassVar[int] = 18
    size_max: ClassVar[int] = SEALED_BLOCK_SIZE_MAX + 320

    def __post_init__(self) -> None:
        check_range("request", self.request, REQUEST_MAX)
        if not 0 < len(self.sealed) <= SEALED_BLOCK_SIZE_MAX:
            raise ValueError(f"a sealed block has 1 to {SEALED_BLOCK_SIZE_MAX} bytes")
        if (len(self.depositor), len(self.signature)) not in {(0, 0), (KEY_SIZE, SIGNATURE_SIZE)}:
            raise ValueError("a statement has a device and its signature")

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        wire = {"request": self.request, "block": self.block, "sealed": self.sealed}
        if self.depositor:
            wire |= {"depositor": self.depositor, "signature": self.signature}
        return wire

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        block = BlockId(get(wire, "block", bytes))
        stated = (b"", b"")
        if "depositor" in wire or "signature" in wire:
            stated = get(wire, "depositor", bytes), get(wire, "signature", bytes)
        return cls(get(wire, "request", int), block, get(wire, "sealed", bytes), *stated)


@dataclass(frozen=True, slots=True)
class Pieces:
    """One block that was wanted, as what differs from the pieces that its asker holds, sealed."""

    request: int
    block: BlockId
    sealed: bytes = field(repr=False)
    type: ClassVar[int] = 23
    size_max: ClassVar[int] = SEALED_BLOCK_SIZE_MAX + 320

    def __post_init__(self) -> None:
        check_range("request", self.request, REQUEST_MAX)
        if not 0 < len(self.sealed) <= SEALED_BLOCK_SIZE_MAX:
            raise ValueError(f"sealed pieces have 1 to {SEALED_BLOCK_SIZE_MAX} bytes")

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"request": self.request, "block": self.block, "sealed": self.sealed}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        block = BlockId(get(wire, "block", bytes))
        return cls(get(wire, "request", int), block, get(wire, "sealed", bytes))


@dataclass(frozen=True, slots=True)
class Missing(BlockList):
    """Blocks that were wanted and are not here."""

    type: ClassVar[int] = 19
    size_max: ClassVar[int] = 4 * _KIB


@dataclass(frozen=True, slots=True)
class Locate(BlockList):
    """Which of these blocks could you send me?"""

    type: ClassVar[int] = 20
    size_max: ClassVar[int] = 4 * _KIB


@dataclass(frozen=True, slots=True)
class Located(BlockList):
    """Answer to `Locate`: the blocks that are not here, as for `Missing`; perhaps none."""

    type: ClassVar[int] = 21
    size_max: ClassVar[int] = 4 * _KIB
    count_min: ClassVar[int] = 0


@dataclass(frozen=True, slots=True)
class Join:
    """First on a join stream: a new device shows its invitation.

    `op` is carried into the log by whoever admits the device; its signatures are checked there
    (`Roster.check_join`).
    """

    folder: FolderId
    op: JoinOp
    type: ClassVar[int] = 32
    size_max: ClassVar[int] = 1 * _KIB

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        op = self.op.to_wire()
        return {"version": PROTOCOL_VERSION, "folder": self.folder, "op": op}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module. Raises VersionError for another protocol version."""
        check_version(wire)
        match get(wire, "op", list):
            case [JoinOp.tag, bytes(key), bytes(device), str(name), bytes(first), bytes(second)]:
                op = JoinOp(DeviceId(key), DeviceId(device), name, first, second)
            case _:
                raise ValueError("malformed join")
        return cls(FolderId(get(wire, "folder", bytes)), op)


@dataclass(frozen=True, slots=True)
class Admitted(_EntryList):
    """Answer to `Join`: the roster's entries, the new one among them. `more`: another follows."""

    more: bool = False
    type: ClassVar[int] = 33
    size_max: ClassVar[int] = _ENTRIES_SIZE_MAX

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {**_EntryList.to_wire(self), "more": self.more}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        entries = tuple(get_all(wire, "entries", bytes, ENTRIES_MAX))
        return cls(entries, get(wire, "more", bool))


@dataclass(frozen=True, slots=True)
class Refused(_Verdict):
    """Answer to `Join`: no, and why."""

    type: ClassVar[int] = 34
    size_max: ClassVar[int] = 1 * _KIB


Message = (
    Hello
    | Have
    | Entries
    | Ack
    | Bye
    | OpenBlocks
    | Want
    | Block
    | Missing
    | Pieces
    | Locate
    | Located
    | Join
    | Admitted
    | Refused
    | Pake
    | Whispered
    | WhichFolder
    | ThisFolder
    | Here
    | Host
    | Hosting
    | OpenDeposits
    | Depot
    | Offer
    | Lacking
    | Seen
    | Notice
    | Keeps
    | Put
    | Stored
    | Drop
    | List
    | Listed
)


def delta(new: VersionVector, told: VersionVector) -> VersionVector:
    """The part of `new` that `told` does not cover; merged into `told` it gives both."""
    grown = {device: seq for device, seq in new.items() if not told.covers(device, seq)}
    return VersionVector(grown) if grown else EMPTY


def plain_reason(text: str) -> str:
    """`text` made fit for a `reason`: printable, one line, cut to its size."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return printable.encode(errors="replace")[:REASON_SIZE_MAX].decode(errors="ignore")


def _get_state(wire: dict[str, Any]) -> tuple[VersionVector, VersionVector, dict[DeviceId, bytes]]:
    heads: dict[DeviceId, bytes] = {}
    previous = b""
    for pair in get_all(wire, "heads", list, DEVICES_MAX):
        match pair:
            case [bytes(device), bytes(head)] if device > previous:
                heads[DeviceId(device)] = head
                previous = device
            case _:
                raise ValueError("'heads' holds [device, hash] pairs, sorted by device")
    have = VersionVector.from_wire(wire.get("have"))
    return have, VersionVector.from_wire(wire.get("complete")), heads
