"""What the fold of the roster entries makes: members, removals, invitations, epochs. Values only.

`crdt.roster_fold` makes a `Folded`; `crdt.roster.Roster` adds the questions to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from crdt.ids import DeviceId, FolderId
from crdt.roster_ops import Epoch, Invite, Op, Role

Ref = tuple[DeviceId, int]
"""An entry, by its author and seq."""

NO_EPOCH: Final = 0  # `first_epoch` of a roster without genesis


@dataclass(frozen=True, slots=True)
class Member:
    """A device in the folder. `invitation` is the one it came by; `since` the grant's lamport."""

    device: DeviceId
    role: Role
    name: str
    since: int
    invitation: DeviceId | None = None
    may_invite: bool = False  # an owner may anyway

    def invites(self, role: Role) -> bool:
        """True when this member may invite others as `role`."""
        return self.role is Role.OWNER or (self.may_invite and role >= self.role)


@dataclass(frozen=True, slots=True)
class Removal:
    """A removed device: the last of its entries that counts, and the entries that removed it."""

    device: DeviceId
    name: str
    last_seq: int
    last_hash: bytes
    refs: tuple[Ref, ...]


@dataclass(frozen=True, slots=True)
class Lowering:
    """A change of a role that takes the right to write away: tree entries past `after` do not
    count, up to `through` if a later change, at one of the entries `ends`, gave it back.
    """

    ref: Ref
    after: int
    through: int | None
    ends: tuple[Ref, ...]


@dataclass(frozen=True, slots=True)
class Invitation:
    """An invitation as the roster knows it, by its public key."""

    op: Invite
    issuer: DeviceId
    joined: tuple[DeviceId, ...] = ()
    closed: bool = False  # revoked, or its secret is known to somebody who was removed

    @property
    def open(self) -> bool:
        """Not closed and not used up; expiry is another matter."""
        return not self.closed and len(self.joined) < self.op.uses


@dataclass(frozen=True, slots=True)
class Void:
    """An operation without effect, and why."""

    device: DeviceId
    seq: int
    op: Op
    reason: str


@dataclass(frozen=True)
class EpochRecord:
    """An epoch as everybody sees it: who was given its key, and where it leads back to."""

    number: int
    op: Epoch
    issuer: DeviceId
    boxes: Mapping[DeviceId, tuple[bytes, ...]]  # by recipient, from the epoch, shares and invites


@dataclass(frozen=True)
class Folded:
    """The outcome of a fold; immutable."""

    folder: FolderId
    members: Mapping[DeviceId, Member] = field(default_factory=dict)
    removed: Mapping[DeviceId, Removal] = field(default_factory=dict)
    invitations: Mapping[DeviceId, Invitation] = field(default_factory=dict)
    epochs: Mapping[int, EpochRecord] = field(default_factory=dict)  # in the fold's order
    first_epoch: int = NO_EPOCH
    fit_epochs: tuple[int, ...] = ()  # for new writes, the newest first
    named: Mapping[DeviceId, Role] = field(default_factory=dict)
    lowered: Mapping[DeviceId, tuple[Lowering, ...]] = field(default_factory=dict)
    void: tuple[Void, ...] = ()


def leads_to(epochs: Mapping[int, EpochRecord], numbers: Iterable[int]) -> frozenset[int]:
    """These epochs and all whose keys follow from theirs."""
    reached: set[int] = set()
    pending = list(numbers)
    while pending:
        number = pending.pop()
        if number in epochs and number not in reached:
            reached.add(number)
            pending.extend(previous for previous, _ in epochs[number].op.previous)
    return frozenset(reached)
