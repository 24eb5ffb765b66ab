"""The operations that roster entries hold, in the clear so that a relay can enforce them.

Each is a value with one strict wire form (a list that starts with its tag) and knows nothing of
the others; what they mean together is `crdt.roster`. `parse_ops` raises ValueError on anything
that `pack_ops` does not make; a well-formed operation that its issuer had no right to is no error
here, it is void in the fold.
"""

from __future__ import annotations

import enum
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from crdt.codec import pack, unpack
from crdt.ids import DeviceId, FolderId
from crdt.seal import (
    BOX_OVERHEAD,
    KEY_SIZE,
    SEAL_OVERHEAD,
    SIGNATURE_SIZE,
    derive_key,
    device_of,
    sign,
    verify,
)
from crdt.version_vector import COUNTER_MAX, DEVICES_MAX

ROSTER_BODY_MAX: Final = 1024 * 1024  # bytes; an epoch sealed to 2,048 keys takes a quarter of it
OPS_MAX: Final = 64  # operations in one entry; a removal takes two
RECIPIENTS_MAX: Final = 2 * DEVICES_MAX  # members and open invitations
EPOCHS_MAX: Final = 4096  # epochs that one operation may name
NAME_SIZE_MAX: Final = 128  # bytes of UTF-8 of a device's name, such as `alice/laptop`
USES_MAX: Final = 1000  # devices that one invitation may admit
NONCE_SIZE: Final = 32

_JOIN_CONTEXT: Final = "shoal v1 join"
_BOX_SIZE: Final = KEY_SIZE + BOX_OVERHEAD
_SEALED_SECRET_SIZE: Final = KEY_SIZE + SEAL_OVERHEAD


class Role(enum.IntEnum):
    """What a member may do. Where two grants of a role meet, the smaller number wins."""

    OWNER = 1  # everything
    EDITOR = 2  # write the tree
    READER = 3  # read the tree
    RELAY = 4  # store and forward, without keys

    @property
    def writes(self) -> bool:
        """May write tree entries."""
        return self <= Role.EDITOR

    @property
    def reads(self) -> bool:
        """Holds the folder's keys."""
        return self <= Role.READER


def check_device_name(name: str) -> None:
    """Raise ValueError unless `name` can name a device: 1 to 128 bytes, printable, untrimmed."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError("a device's name must be valid UTF-8") from None
    if not 0 < size <= NAME_SIZE_MAX:
        raise ValueError(f"a device's name has 1 to {NAME_SIZE_MAX} bytes, this one has {size}")
    # Control and format characters could fake lines or reverse text where the name is shown.
    if name != name.strip() or any(unicodedata.category(c)[0] == "C" for c in name):
        raise ValueError("a device's name holds printable characters only, no spaces around it")


@dataclass(frozen=True, slots=True)
class Genesis:
    """The folder's first operation; its hash is the folder's id. `name` is the owner's device's."""

    owner: DeviceId
    name: str
    nonce: bytes
    tag: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_device_name(self.name)
        _check_size("nonce", self.nonce, NONCE_SIZE)

    @property
    def folder(self) -> FolderId:
        """The id of the folder that this operation begins."""
        return FolderId(derive_key("shoal v1 folder id", pack(self.to_wire())))

    def to_wire(self) -> list[Any]:
        """See `pack_ops`."""
        return [self.tag, self.owner, self.name, self.nonce]


@dataclass(frozen=True, slots=True)
class Add:
    """An owner makes `device` a member, or raises its role."""

    device: DeviceId
    role: Role
    name: str
    tag: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_device_name(self.name)

    def to_wire(self) -> list[Any]:
        """See `pack_ops`."""
        return [self.tag, self.device, int(self.role), self.name]


@dataclass(frozen=True, slots=True)
class Remove:
    """An owner removes `device` for good; of its entries, those up to `last_seq` count."""

    device: DeviceId
    last_seq: int
    last_hash: bytes
    tag: ClassVar[int] = 3

    def __post_init__(self) -> None:
        _check_range("last_seq", self.last_seq, 0, COUNTER_MAX)
        _check_size("last_hash", self.last_hash, 32)

    def to_wire(self) -> list[Any]:
        """See `pack_ops`."""
        return [self.tag, self.device, self.last_seq, self.last_hash]


Sealed = tuple[tuple[DeviceId, bytes], ...]
Secrets = tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class Epoch:
    """A new epoch: its secret sealed to each key that may read from now on, and the secrets of
    the epochs before sealed under it.
    """

    commitment: bytes
    sealed: Sealed
    previous: Secrets
    tag: ClassVar[int] = 4

    def __post_init__(self) -> None:
        _check_size("commitment", self.commitment, 32)
        _check_pairs(self.sealed, _BOX_SIZE, RECIPIENTS_MAX)
        _check_pairs(self.previous, _SEALED_SECRET_SIZE, EPOCHS_MAX)

    def to_wire(self) -> list[Any]:
        """See `pack_ops`."""
        return [self.tag, self.commitment, _pairs(self.sealed), _pairs(self.previous)]


@dataclass(frozen=True, slots=True)
class Share:
    """The secret of a known epoch sealed to more keys: to a member that its issuer had not
    known.
    """

    epoch: int
    sealed: Sealed
    tag: ClassVar[int] = 5

    def __post_init__(self) -> None:
        _check_range("epoch", self.epoch, 1, COUNTER_MAX)
        _check_pairs(self.sealed, _BOX_SIZE, RECIPIENTS_MAX)

    def to_wire(self) -> list[Any]:
        """See `pack_ops`."""
        return [self.tag, self.epoch, _pairs(self.sealed)]


@dataclass(frozen=True, slots=True)
class Invite:
    """An owner lets whoever holds the secret half of `key` add devices with `role`.

    `expires_s` is in seconds since 1970 UTC, judged by the clock of whoever admits; `keys` are the
    secrets of epochs, by number, sealed to `key`.
    """

    key: DeviceId
    role: Role
    uses: int
    expires_s: int
    keys: Secrets
    tag: ClassVar[int] = 6

    def __post_init__(self) -> None:
        _check_range("uses", self.uses, 1, USES_MAX)
        _check_range("expires_s", self.expires_s, 0, COUNTER_MAX)
        _check_pairs(self.keys, _BOX_SIZE, EPOCHS_MAX)

    def to_wire(self) -> list[Any]:
        """See `pack_ops`."""
        role = int(self.role)
        return [self.tag, self.key, role, self.uses, self.expires_s, _pairs(self.keys)]


@dataclass(frozen=True, slots=True)
class Revoke:
    """An owner takes an invitation back."""

    key: DeviceId
    tag: ClassVar[int] = 7

    def to_wire(self) -> list[Any]:
        """See `pack_ops`."""
        return [self.tag, self.key]


@dataclass(frozen=True, slots=True)
class Join:
    """`device` becomes a member by the invitation `key`.

    Signed by the invitation's key (so any member can carry it) and by the device's (so nobody
    joins with a key that is not theirs).
    """

    key: DeviceId
    device: DeviceId
    name: str
    invitation_signature: bytes
    device_signature: bytes
    tag: ClassVar[int] = 8

    def __post_init__(self) -> None:
        check_device_name(self.name)
        _check_size("signature", self.invitation_signature, SIGNATURE_SIZE)
        _check_size("signature", self.device_signature, SIGNATURE_SIZE)

    @classmethod
    def signed(cls, folder: FolderId, invitation_seed: bytes, seed: bytes, name: str) -> Join:
        """Made by the joining device: `seed` is its own, `invitation_seed` the invitation's."""
        key, device = device_of(invitation_seed), device_of(seed)
        claim = _claim(folder, key, device, name)
        by_invitation = sign(invitation_seed, _JOIN_CONTEXT, claim)
        return cls(key, device, name, by_invitation, sign(seed, _JOIN_CONTEXT, claim))

    def verify(self, folder: FolderId) -> bool:
        """True when both signatures hold for this folder."""
        claim = _claim(folder, self.key, self.device, self.name)
        return verify(self.key, _JOIN_CONTEXT, claim, self.invitation_signature) and verify(
            self.device, _JOIN_CONTEXT, claim, self.device_signature
        )

    def to_wire(self) -> list[Any]:
        """See `pack_ops`."""
        signatures = [self.invitation_signature, self.device_signature]
        return [self.tag, self.key, self.device, self.name, *signatures]


@dataclass(frozen=True, slots=True)
class SetRole:
    """An owner gives a member another role, wider or narrower.

    `may_invite` lets an editor or a reader invite others with its own role or a narrower one. Of
    the device's tree entries up to `last_seq` all count that counted before; later ones count if
    `role` writes.
    """

    device: DeviceId
    role: Role
    may_invite: bool
    last_seq: int
    last_hash: bytes
    tag: ClassVar[int] = 9

    def __post_init__(self) -> None:
        if not self.role.reads:
            raise ValueError("a member does not become a relay; a relay is invited as one")
        if type(self.may_invite) is not bool:
            raise ValueError("may_invite is true or false")
        _check_range("last_seq", self.last_seq, 0, COUNTER_MAX)
        _check_size("last_hash", self.last_hash, 32)

    def to_wire(self) -> list[Any]:
        """See `pack_ops`."""
        end = [self.last_seq, self.last_hash]
        return [self.tag, self.device, int(self.role), self.may_invite, *end]


Op = Genesis | Add | Remove | Epoch | Share | Invite | Revoke | Join | SetRole


def pack_ops(ops: Iterable[Op]) -> bytes:
    """The body of a roster entry; raises ValueError when it is too large."""
    body = pack([op.to_wire() for op in ops])
    parse_ops(body)
    return body


def parse_ops(body: bytes) -> tuple[Op, ...]:
    """Strictly parse a roster entry's body; raises ValueError on anything else."""
    wire = unpack(body, size_max=ROSTER_BODY_MAX)
    if not isinstance(wire, list) or not 1 <= len(wire) <= OPS_MAX:
        raise ValueError(f"a roster entry holds 1 to {OPS_MAX} operations")
    ops = tuple(_parse_op(op) for op in wire)
    if pack([op.to_wire() for op in ops]) != body:  # `true` for 1, say
        raise ValueError("malformed roster operation")
    return ops


def _parse_op(wire: object) -> Op:
    match wire:
        case [int(tag), *fields] if type(tag) is int and tag in _PARSERS:
            return _PARSERS[tag](fields)
        case [int(tag), *_]:
            raise ValueError(f"roster operation {tag} is not known to this version")
        case _:
            raise ValueError("malformed roster operation")


def _parse_genesis(fields: list[object]) -> Op:
    match fields:
        case [bytes(owner), str(name), bytes(nonce)]:
            return Genesis(DeviceId(owner), name, nonce)
        case _:
            raise ValueError("malformed genesis")


def _parse_add(fields: list[object]) -> Op:
    match fields:
        case [bytes(device), int(role), str(name)]:
            return Add(DeviceId(device), Role(role), name)
        case _:
            raise ValueError("malformed addition")


def _parse_remove(fields: list[object]) -> Op:
    match fields:
        case [bytes(device), int(last_seq), bytes(last_hash)]:
            return Remove(DeviceId(device), last_seq, last_hash)
        case _:
            raise ValueError("malformed removal")


def _parse_epoch(fields: list[object]) -> Op:
    match fields:
        case [bytes(commitment), list(sealed), list(previous)]:
            return Epoch(commitment, _parse_sealed(sealed), _parse_secrets(previous))
        case _:
            raise ValueError("malformed epoch")


def _parse_share(fields: list[object]) -> Op:
    match fields:
        case [int(epoch), list(sealed)]:
            return Share(epoch, _parse_sealed(sealed))
        case _:
            raise ValueError("malformed share")


def _parse_invite(fields: list[object]) -> Op:
    match fields:
        case [bytes(key), int(role), int(uses), int(expires_s), list(keys)]:
            return Invite(DeviceId(key), Role(role), uses, expires_s, _parse_secrets(keys))
        case _:
            raise ValueError("malformed invitation")


def _parse_revoke(fields: list[object]) -> Op:
    match fields:
        case [bytes(key)]:
            return Revoke(DeviceId(key))
        case _:
            raise ValueError("malformed revocation")


def _parse_join(fields: list[object]) -> Op:
    match fields:
        case [bytes(key), bytes(device), str(name), bytes(by_invitation), bytes(by_device)]:
            return Join(DeviceId(key), DeviceId(device), name, by_invitation, by_device)
        case _:
            raise ValueError("malformed join")


def _parse_set_role(fields: list[object]) -> Op:
    match fields:
        case [bytes(device), int(role), bool(may_invite), int(last_seq), bytes(last_hash)]:
            return SetRole(DeviceId(device), Role(role), may_invite, last_seq, last_hash)
        case _:
            raise ValueError("malformed change of a role")


_PARSERS: Final[dict[int, Callable[[list[object]], Op]]] = {
    Genesis.tag: _parse_genesis,
    Add.tag: _parse_add,
    Remove.tag: _parse_remove,
    Epoch.tag: _parse_epoch,
    Share.tag: _parse_share,
    Invite.tag: _parse_invite,
    Revoke.tag: _parse_revoke,
    Join.tag: _parse_join,
    SetRole.tag: _parse_set_role,
}


def _claim(folder: FolderId, key: DeviceId, device: DeviceId, name: str) -> bytes:
    return pack([folder, key, device, name])


def _pairs(pairs: Sealed | Secrets) -> list[list[object]]:
    return [[key, sealed] for key, sealed in pairs]


def _parse_sealed(wire: list[object]) -> Sealed:
    parsed = []
    for pair in wire:
        match pair:
            case [bytes(recipient), bytes(sealed)]:
                parsed.append((DeviceId(recipient), sealed))
            case _:
                raise ValueError("keys are sealed as [recipient, box] pairs")
    return tuple(parsed)


def _parse_secrets(wire: list[object]) -> Secrets:
    parsed = []
    for pair in wire:
        match pair:
            case [int(epoch), bytes(sealed)] if 1 <= epoch <= COUNTER_MAX:
                parsed.append((epoch, sealed))
            case _:
                raise ValueError("epoch keys are [epoch, sealed] pairs")
    return tuple(parsed)


def _check_pairs(pairs: Sealed | Secrets, size: int, count_max: int) -> None:
    if len(pairs) > count_max:
        raise ValueError(f"at most {count_max} sealed keys, got {len(pairs)}")
    keys = [key for key, _ in pairs]
    if keys != sorted(set(keys)):
        raise ValueError("sealed keys are sorted and distinct")
    if any(len(sealed) != size for _, sealed in pairs):
        raise ValueError(f"a sealed key has {size} bytes")


def _check_range(what: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} must be an integer in {low}..{high}, got {value!r}")


def _check_size(what: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise ValueError(f"a {what} has {size} bytes, got {len(value)}")
