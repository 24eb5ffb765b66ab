"""Entries: the signed, numbered records of each device's log. The log is what nodes exchange.

An entry is a header, the author's signature of it, and a body that the header names by its hash. A
tree entry's body is sealed slot writes, a roster entry's is in the clear (`crdt.roster_ops`).

Pure. Shapes are checked when bytes are parsed (ValueError), whether an entry fits into the logs we
hold by `crdt.acceptance`, a sealed body when it is opened: `IntegrityError` for a broken seal,
`PeerError`, naming the author, for a body that a correct author cannot have written.
docs/protocol.md has the layouts.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

import blake3
import zstandard

from crdt.codec import VALUES_MAX, pack, unpack
from crdt.errors import IntegrityError, PeerError
from crdt.ids import ROOT, DeviceId, FolderId, ItemId
from crdt.seal import EpochKey, device_of, open_sealed, pad, seal, sign, unpad, verify
from crdt.slot import MANIFEST_TOP_MAX, PLACEMENTS_MAX, Slot
from crdt.version_vector import COUNTER_MAX, VersionVector

HASH_SIZE: Final = 32
NO_HASH: Final = bytes(HASH_SIZE)  # `prev_hash` of a device's first entry
HEADER_SIZE_MAX: Final = 64 * 1024  # bytes; a full version vector is 42 KB
BODY_SIZE_MAX: Final = 4 * 1024 * 1024  # bytes as sealed; one frame carries it
OPENED_SIZE_MAX: Final = 16 * 1024 * 1024  # bytes after decompression; bounds a zip bomb
ENTRY_SIZE_MAX: Final = HEADER_SIZE_MAX + BODY_SIZE_MAX + 1024
WRITES_MAX: Final = 2000  # slot writes in one entry; a scan makes about 1,000 each

_FORMAT: Final = 1
_HEADER_CONTEXT: Final = "shoal v1 entry header"
_BODY_CONTEXT: Final = "shoal v1 tree body"
_STORED, _ZSTD = b"\0", b"\1"  # first byte of an opened body: how the rest is stored
_ZSTD_LEVEL: Final = 3


# What a write counts for in `crdt.codec.VALUES_MAX`, at most: a list counts once for itself and
# once as an element of another.
_WRITE_VALUES: Final = 40  # without the following
_PLACEMENT_VALUES: Final = 5
_PAIR_VALUES: Final = 4  # of a version vector, or a reference to a block


class EntryKind(enum.IntEnum):
    """What the body holds. 3 is kept free for snapshots."""

    TREE = 1
    ROSTER = 2


@dataclass(frozen=True, slots=True)
class LogPosition:
    """The last entry of one device's log that we hold: its seq (0: none), hash and lamport."""

    seq: int = 0
    head: bytes = NO_HASH
    lamport: int = 0


START: Final = LogPosition()
"""Where every log starts."""


@dataclass(frozen=True)
class Header:
    """The signed part of an entry.

    `deps` is what the author had when it wrote, its own log up to `seq - 1` included; `epoch` is 0
    for a roster entry; `body_hash` is the BLAKE3 of the body as it travels.
    """

    folder: FolderId
    device: DeviceId
    seq: int
    prev_hash: bytes
    deps: VersionVector
    lamport: int
    epoch: int
    kind: EntryKind
    body_hash: bytes

    def __post_init__(self) -> None:
        for what, value, low in (
            ("seq", self.seq, 1),
            ("lamport", self.lamport, 1),
            ("epoch", self.epoch, 0),
        ):
            if type(value) is not int or not low <= value <= COUNTER_MAX:
                raise ValueError(f"{what} must be an integer in {low}..2**53, got {value!r}")
        if len(self.prev_hash) != HASH_SIZE or len(self.body_hash) != HASH_SIZE:
            raise ValueError(f"hashes have {HASH_SIZE} bytes")
        if (self.seq == 1) != (self.prev_hash == NO_HASH):
            raise ValueError("only a device's first entry has no predecessor")
        if self.deps[self.device] != self.seq - 1:
            raise ValueError("an entry depends on its author's previous entry")
        if (self.kind is EntryKind.TREE) != (self.epoch > 0):
            raise ValueError("tree entries name an epoch, roster entries none")

    @cached_property
    def packed(self) -> bytes:
        """The bytes that are signed and hashed."""
        return pack(
            [
                _FORMAT,
                self.folder,
                self.device,
                self.seq,
                self.prev_hash,
                self.deps.to_wire(),
                self.lamport,
                self.epoch,
                int(self.kind),
                self.body_hash,
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Header:
        """Strictly parse `packed`; raises ValueError on anything else."""
        match unpack(data, size_max=HEADER_SIZE_MAX):
            case [int(version), *_] if version != _FORMAT:
                raise ValueError(f"entry format {version} is not known to this version")
            case [
                int(),
                bytes(folder),
                bytes(device),
                int(seq),
                bytes(prev_hash),
                deps,
                int(lamport),
                int(epoch),
                int(kind),
                bytes(body_hash),
            ]:
                pass
            case _:
                raise ValueError("malformed entry header")
        header = cls(
            folder=FolderId(folder),
            device=DeviceId(device),
            seq=seq,
            prev_hash=prev_hash,
            deps=VersionVector.from_wire(deps),
            lamport=lamport,
            epoch=epoch,
            kind=EntryKind(kind),
            body_hash=body_hash,
        )
        if header.packed != data:  # `true` for 1: what was signed must be what we hash
            raise ValueError("malformed entry header")
        return header


@dataclass(frozen=True)
class Entry:
    """One entry. Parsed entries have a body that matches the header; the signature is the
    acceptance rules' first question (`verify_signature`).
    """

    header: Header
    signature: bytes
    body: bytes

    @cached_property
    def hash(self) -> bytes:
        """BLAKE3 of the signed header bytes: the entry's name, and the next one's `prev_hash`."""
        return blake3.blake3(self.header.packed).digest()

    @property
    def position(self) -> LogPosition:
        """The author's log once this entry is in it."""
        return LogPosition(self.header.seq, self.hash, self.header.lamport)

    def verify_signature(self) -> bool:
        """True when the author signed this header."""
        header = self.header
        return verify(header.device, _HEADER_CONTEXT, header.packed, self.signature)

    def to_bytes(self) -> bytes:
        """The bytes that `from_bytes` reads."""
        return pack([self.header.packed, self.signature, self.body])

    @classmethod
    def from_bytes(cls, data: bytes) -> Entry:
        """Strictly parse `to_bytes`; checks shape, sizes and the body's hash, not the signature.

        Raises:
            ValueError: anything else than what `to_bytes` makes.
        """
        match unpack(data, size_max=ENTRY_SIZE_MAX):
            case [bytes(header), bytes(signature), bytes(body)] if len(body) <= BODY_SIZE_MAX:
                pass
            case _:
                raise ValueError("malformed entry")
        entry = cls(Header.from_bytes(header), signature, body)
        if blake3.blake3(body).digest() != entry.header.body_hash:
            raise ValueError("the entry's body is not the one its header names")
        return entry


def build(
    seed: bytes,
    *,
    folder: FolderId,
    after: LogPosition,
    deps: VersionVector,
    lamport: int,
    kind: EntryKind,
    body: bytes,
    epoch: int = 0,
) -> Entry:
    """Sign the next entry of our own log.

    Args:
        seed: Our Ed25519 seed.
        folder: The folder.
        after: Our log's position now.
        deps: Everything we have; our own log's end is put in here.
        lamport: Greater than that of every entry we have.
        kind: What `body` is.
        body: At most `BODY_SIZE_MAX` bytes.
        epoch: The epoch that sealed the body; 0 for a roster entry.
    Raises:
        ValueError: the body is too large or the parts do not fit together.
    """
    if len(body) > BODY_SIZE_MAX:
        raise ValueError(f"a body has at most {BODY_SIZE_MAX} bytes, got {len(body)}")
    if lamport <= after.lamport:
        raise ValueError(f"lamport {lamport} is not after {after.lamport}")
    device = device_of(seed)
    header = Header(
        folder=folder,
        device=device,
        seq=after.seq + 1,
        prev_hash=after.head,
        deps=deps.with_counter(device, after.seq),
        lamport=lamport,
        epoch=epoch,
        kind=kind,
        body_hash=blake3.blake3(body).digest(),
    )
    return Entry(header, sign(seed, _HEADER_CONTEXT, header.packed), body)


Writes = Iterable[tuple[ItemId, Slot]]


def writes_max(devices: int) -> int:
    """So many writes always fit into an entry's `VALUES_MAX`, where `devices` ever wrote to the
    folder: each slot may name all of them in its version and in what it deleted.
    """
    pairs = MANIFEST_TOP_MAX + 2 * devices
    write = _WRITE_VALUES + _PLACEMENT_VALUES * PLACEMENTS_MAX + _PAIR_VALUES * pairs
    return min(WRITES_MAX, VALUES_MAX // write)


def _values(slot: Slot) -> int:
    pairs = 0 if slot.deleted is None else len(slot.deleted)
    if slot.content is not None:
        manifest = slot.content.manifest
        pairs += len(slot.content.version) + (0 if manifest is None else len(manifest.blocks))
    return _WRITE_VALUES + _PLACEMENT_VALUES * len(slot.placements) + _PAIR_VALUES * pairs


@dataclass(frozen=True, slots=True)
class TreeBody:
    """What a tree entry says: its writes, and when its author's clock says that it was written, in
    milliseconds since 1970 UTC; None where it does not say. The time is for people: nothing that
    must agree between devices rests on it.
    """

    writes: list[tuple[ItemId, Slot]]
    time_ms: int | None = None


def seal_writes(
    writes: Writes,
    key: EpochKey,
    nonce: bytes,
    *,
    device: DeviceId,
    seq: int,
    time_ms: int | None = None,
) -> bytes:
    """The body of the tree entry `seq` of `device`.

    Args:
        writes: At most one slot an item, at most `WRITES_MAX`.
        key: The epoch to seal under; its number goes into the header.
        nonce: 24 random bytes.
        device: The author.
        seq: The entry's number; every slot's counter equals it.
        time_ms: See `TreeBody`.
    Raises:
        ValueError: too many writes, a wrong counter, or a body above `BODY_SIZE_MAX`.
    """
    ordered = sorted(writes, key=_item)
    if not 1 <= len(ordered) <= WRITES_MAX:
        raise ValueError(f"an entry holds 1 to {WRITES_MAX} writes, got {len(ordered)}")
    if any(slot.counter != seq for _, slot in ordered):
        raise ValueError("a slot's counter is the seq of the entry that writes it")
    if (values := sum(_values(slot) for _, slot in ordered)) > VALUES_MAX:
        raise ValueError(f"the writes hold {values} values, at most {VALUES_MAX} are decoded")
    items = [ROOT, *(item for item, _ in ordered)]
    if any(item <= previous for previous, item in pairwise(items)):
        raise ValueError("an entry writes each item once, and never the root")
    wire = [[item, slot.to_wire()] for item, slot in ordered]
    plain = pack(wire if time_ms is None else {"time": time_ms, "writes": wire})
    if len(plain) > OPENED_SIZE_MAX:
        raise ValueError(f"the writes take {len(plain)} bytes, at most {OPENED_SIZE_MAX} fit")
    squeezed = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(plain)
    stored = _ZSTD + squeezed if len(squeezed) < len(plain) else _STORED + plain
    associated = _binding(key.folder, device, seq, key.number)
    body = seal(key.entry_key, pad(stored), nonce=nonce, associated=associated)
    if len(body) > BODY_SIZE_MAX:
        raise ValueError(f"the sealed writes take {len(body)} bytes, at most {BODY_SIZE_MAX} fit")
    return body


def open_writes(entry: Entry, key: EpochKey) -> list[tuple[ItemId, Slot]]:
    """The writes of `open_body`."""
    return open_body(entry, key).writes


def open_body(entry: Entry, key: EpochKey) -> TreeBody:
    """Open, decompress and strictly check what a tree entry says.

    Raises:
        IntegrityError: the seal does not hold under `key` at this place.
        PeerError: the author sealed something that it must not write; names the author.
    """
    header = entry.header
    if header.kind is not EntryKind.TREE or header.epoch != key.number:
        raise IntegrityError("this key does not open that entry")
    associated = _binding(header.folder, header.device, header.seq, header.epoch)
    opened = open_sealed(key.entry_key, entry.body, associated=associated)
    try:
        wire = unpack(_decompress(unpad(opened)), size_max=OPENED_SIZE_MAX)
        return _parse_body(wire, header)
    except ValueError as error:
        raise PeerError(
            f"entry {header.seq} of device {header.device.short} is malformed: {error}"
        ) from None


def build_tree(
    seed: bytes,
    *,
    key: EpochKey,
    after: LogPosition,
    deps: VersionVector,
    lamport: int,
    writes: Writes,
    nonce: bytes,
    time_ms: int | None = None,
) -> Entry:
    """Seal and sign the next entry of our own log, a tree entry; see `seal_writes` and `build`.

    Raises:
        ValueError: too many or too large writes, or a write that every receiver would refuse; our
            own log would end there, so it is checked here.
    """
    writes = list(writes)
    body = seal_writes(
        writes, key, nonce, device=device_of(seed), seq=after.seq + 1, time_ms=time_ms
    )
    entry = build(
        seed,
        folder=key.folder,
        after=after,
        deps=deps,
        lamport=lamport,
        kind=EntryKind.TREE,
        body=body,
        epoch=key.number,
    )
    seen = entry.header.deps.with_counter(entry.header.device, entry.header.seq)
    for item, slot in writes:
        _check_write(item, slot, entry.header, seen)
    return entry


def _item(write: tuple[ItemId, Slot]) -> ItemId:
    return write[0]


def _binding(folder: FolderId, device: DeviceId, seq: int, epoch: int) -> bytes:
    return pack([_BODY_CONTEXT, folder, device, seq, epoch])


def _decompress(stored: bytes) -> bytes:
    how, data = stored[:1], stored[1:]
    if how == _STORED:
        return data
    if how != _ZSTD:
        raise ValueError("unknown compression")
    try:
        # zstandard ignores `max_output_size` when the frame declares its size, and a frame may
        # lie about it: check what is declared, and read with a cap.
        declared = zstandard.frame_content_size(data)
        if not 0 <= declared <= OPENED_SIZE_MAX:
            raise ValueError(f"the body declares {declared} bytes, at most {OPENED_SIZE_MAX}")
        reader = zstandard.ZstdDecompressor(max_window_size=OPENED_SIZE_MAX).stream_reader(data)
        plain: bytes = reader.read(OPENED_SIZE_MAX + 1)
    except zstandard.ZstdError as error:
        raise ValueError(f"not valid zstd: {error}") from None
    if len(plain) != declared:
        raise ValueError("the body does not have the size it declares")
    return plain


def _parse_body(wire: object, header: Header) -> TreeBody:
    """A list of writes, or a map with them and more; what is unknown in the map is left aside."""
    if not isinstance(wire, dict):
        return TreeBody(_parse_writes(wire, header))
    time_ms = wire.get("time")
    if time_ms is not None and (type(time_ms) is not int or not 0 <= time_ms <= COUNTER_MAX):
        raise ValueError("the time is a number of milliseconds since 1970")
    return TreeBody(_parse_writes(wire.get("writes"), header), time_ms)


def _parse_writes(wire: object, header: Header) -> list[tuple[ItemId, Slot]]:
    if not isinstance(wire, list) or not 1 <= len(wire) <= WRITES_MAX:
        raise ValueError(f"an entry holds 1 to {WRITES_MAX} writes")
    seen = header.deps.with_counter(header.device, header.seq)
    writes: list[tuple[ItemId, Slot]] = []
    previous = ROOT  # the least id, and the one item that nobody may write
    for pair in wire:
        match pair:
            case [bytes(raw), slot_wire]:
                item, slot = ItemId(raw), Slot.from_wire(slot_wire)
            case _:
                raise ValueError("a write is an item and a slot")
        if item <= previous:
            raise ValueError("writes are sorted by item, one each, none of the root")
        previous = item
        _check_write(item, slot, header, seen)
        writes.append((item, slot))
    return writes


def _check_write(item: ItemId, slot: Slot, header: Header, seen: VersionVector) -> None:
    """A slot speaks of nothing that its author had not seen.

    Otherwise a hostile author could claim to have seen writes that do not exist yet, and so
    silently replace or delete what others will write later.
    """
    if slot.counter != header.seq:
        raise ValueError("a slot's counter is the seq of the entry that writes it")
    if any(placement.lamport > header.lamport for placement in slot.placements):
        raise ValueError("a placement is newer than the entry that made it")
    if any(placement.parent == item for placement in slot.placements):
        raise ValueError("an item cannot lie in itself")
    if slot.deleted is not None and not seen.dominates(slot.deleted):
        raise ValueError("a deletion covers writes that its author had not seen")
    if slot.content is not None:
        if slot.content.lamport > header.lamport:
            raise ValueError("a content is newer than the entry that made it")
        if not seen.dominates(slot.content.version):
            raise ValueError("a version covers writes that its author had not seen")
