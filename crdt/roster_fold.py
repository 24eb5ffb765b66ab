"""The fold that makes the roster out of roster entries.

`fold` is a pure function of the *set* of accepted roster entries: it sorts them by (lamport,
device, seq), an order that extends causality, and applies one after the other. It never raises on
an operation that its issuer had no right to; such operations are listed in `void`.

Rules
- Owners add, remove, invite, revoke and change roles. Owners and editors begin epochs. Whoever
  reads may share an epoch's key. Any member, a relay too, may carry a join. Nobody removes itself
  or changes its own role.
- A member that an owner allowed to may invite with its own role or a narrower one, and revoke what
  it issued.
- An issuer must be a member at its place in the order. So of two owners that remove each other at
  once, the removal that comes first counts, and the other one is void: one owner stays.
- A removal is for good, beats every other word on that device, concurrent ones too, and says which
  of its entries count: those that the remover had seen. It closes the invitations that the device
  issued or came by, since it knows their secrets.
- Of changes of a role that did not know of each other the narrower counts; one that knew of others
  replaces them. Once an owner has changed a device's role, additions and joins no longer do. A
  narrower role closes the device's invitations, as a removal does.
- A join counts if both its signatures hold and the invitation was, in the join's causal past,
  issued, not closed, and not used up. Two joins that did not know of each other may so use one
  invitation once too often; they are both admitted, since neither admitter could know.
- Expiry is judged by the clock of whoever admits (`Roster.check_join`), never here.
- An epoch is fit for new writes when nobody but members that read and invitations that are not
  closed was ever given its key, or that of an epoch that leads back to it.

A grant whose issuer was removed at the same time is void, yet somebody may have accepted what the
new device wrote. `named_role` therefore goes on naming it, so that all nodes take the same entries
into their logs; `counts` says which of them have an effect.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from crdt.entry import Entry, EntryKind
from crdt.ids import DeviceId, FolderId
from crdt.roster_ops import (
    Add,
    Epoch,
    Genesis,
    Invite,
    Join,
    Op,
    Remove,
    Revoke,
    Role,
    SetRole,
    Share,
    parse_ops,
)
from crdt.roster_state import (
    NO_EPOCH,
    EpochRecord,
    Folded,
    Invitation,
    Lowering,
    Member,
    Ref,
    Removal,
    Void,
    leads_to,
)
from crdt.seal import epoch_number, is_public_key
from crdt.version_vector import DEVICES_MAX, VersionVector


def fold(folder: FolderId, entries: Iterable[Entry]) -> Folded:
    """The roster that these roster entries make, in whatever order they are given.

    Raises:
        ValueError: an entry of another folder or kind, or a malformed body; acceptance never lets
            these in.
    """
    state = _Fold(folder)
    unique = {entry.hash: entry for entry in entries}
    for entry in sorted(unique.values(), key=_order):
        state.apply(entry)
    return state.finish()


def _order(entry: Entry) -> tuple[int, DeviceId, int, bytes]:
    header = entry.header
    return header.lamport, header.device, header.seq, entry.hash


class _VoidError(Exception):
    """Why the operation at hand has no effect."""


@dataclass(slots=True)
class _Place:
    """Where in the logs an operation stands."""

    device: DeviceId
    seq: int
    lamport: int
    deps: VersionVector
    genesis: bool  # the entry began with the folder's genesis

    def saw(self, ref: Ref) -> bool:
        return self.deps.covers(*ref) or ref == (self.device, self.seq)


@dataclass(slots=True)
class _Issued:
    """An invitation while folding. `effective` is False when its issuer had lost the right."""

    op: Invite
    ref: Ref
    effective: bool
    closings: list[Ref] = field(default_factory=list)
    joins: list[tuple[DeviceId, Ref]] = field(default_factory=list)


@dataclass(slots=True)
class _Change:
    """A change of a role while folding, and the changes that knew of it and replaced it."""

    op: SetRole
    ref: Ref
    through: int | None = None
    ends: list[Ref] = field(default_factory=list)


class _Fold:
    """The fold's state between two entries. Deterministic; used once."""

    def __init__(self, folder: FolderId) -> None:
        self._folder = folder
        self._members: dict[DeviceId, Member] = {}
        self._removed: dict[DeviceId, Removal] = {}
        self._issued: dict[DeviceId, _Issued] = {}
        self._epochs: dict[int, tuple[Epoch, DeviceId]] = {}
        self._boxes: dict[int, dict[DeviceId, list[bytes]]] = {}
        self._first_epoch = NO_EPOCH
        self._named: dict[DeviceId, Role] = {}
        self._changes: dict[DeviceId, list[_Change]] = defaultdict(list)
        self._inviters: set[DeviceId] = set()  # allowed to at some time
        self._void: list[Void] = []
        self._clocks: dict[DeviceId, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))

    def apply(self, entry: Entry) -> None:
        header = entry.header
        if header.folder != self._folder or header.kind is not EntryKind.ROSTER:
            raise ValueError("only roster entries of this folder make its roster")
        ops = parse_ops(entry.body)
        first = ops[0]
        genesis = isinstance(first, Genesis) and self._is_genesis(first, header.device, header.seq)
        place = _Place(header.device, header.seq, header.lamport, header.deps, genesis)
        backwards = self._runs_backwards(place)
        for op in ops:
            try:
                self._apply_op(op, place, backwards=backwards)
            except _VoidError as reason:
                self._void.append(Void(place.device, place.seq, op, str(reason)))

    def finish(self) -> Folded:
        invitations = {key: self._finish_invitation(one) for key, one in self._issued.items()}
        epochs = {
            number: EpochRecord(
                number,
                op,
                issuer,
                {device: tuple(boxes) for device, boxes in self._boxes[number].items()},
            )
            for number, (op, issuer) in self._epochs.items()
        }
        trusted = {one.device for one in self._members.values() if one.role.reads}
        holders = trusted | {key for key, one in invitations.items() if not one.closed}
        leaked = [
            number
            for number, one in epochs.items()
            if one.issuer not in trusted or not holders.issuperset(one.boxes)
        ]
        unfit = leads_to(epochs, leaked)
        return Folded(
            folder=self._folder,
            members=self._members,
            removed=self._removed,
            invitations={k: one for k, one in invitations.items() if self._issued[k].effective},
            epochs=epochs,
            first_epoch=self._first_epoch,
            fit_epochs=tuple(number for number in reversed(list(epochs)) if number not in unfit),
            named=self._named,
            lowered={device: _lowerings(changes) for device, changes in self._changes.items()},
            void=tuple(self._void),
        )

    def _apply_op(self, op: Op, place: _Place, *, backwards: bool) -> None:
        if backwards:
            raise _VoidError("its lamport is not after what it had seen")
        match op:
            case Genesis():
                self._genesis(op, place)
            case Add():
                effective = self._entitled(place, Role.OWNER)
                self._grant(op.device, op.role, op.name, None, place, effective=effective)
            case Remove():
                self._remove(op, place)
            case Epoch():
                self._epoch(op, place)
            case Share():
                self._entitled(place, Role.READER)
                if op.epoch not in self._epochs:
                    raise _VoidError("it shares an epoch that does not exist")
                self._seal_to(op.epoch, op.sealed)
            case Invite():
                self._invite(op, place)
            case Revoke():
                issued = self._issued.get(op.key)
                if issued is None:
                    raise _VoidError("there is no such invitation")
                own = issued.ref[0] == place.device and place.device in self._members
                if not own:
                    self._require(place, Role.OWNER)
                self._issued[op.key].closings.append((place.device, place.seq))
            case Join():
                self._join(op, place)
            case SetRole():
                self._set_role(op, place)

    def _is_genesis(self, op: Genesis, device: DeviceId, seq: int) -> bool:
        return op.folder == self._folder and op.owner == device and seq == 1

    def _runs_backwards(self, place: _Place) -> bool:
        """True when the entry's lamport is not above those of the roster entries it had seen; an
        order by lamport would then not extend causality. Also notes this entry's own lamport.
        """
        ran = False
        for device, (seqs, lamports) in self._clocks.items():
            seen = bisect_right(seqs, place.deps[device])
            ran = ran or (seen > 0 and lamports[seen - 1] >= place.lamport)
        seqs, lamports = self._clocks[place.device]
        ran = ran or bool(seqs and seqs[-1] >= place.seq)
        if not ran:
            seqs.append(place.seq)
            lamports.append(place.lamport)
        return ran

    def _entitled(self, place: _Place, least: Role) -> bool:
        """True when the issuer is a member that may; False when it would, were it not removed.

        Raises:
            _VoidError: it never had the right.
        """
        named = self._named.get(place.device)
        if named is None or named > least:
            raise _VoidError("its issuer has no right to it")
        member = self._members.get(place.device)
        return member is not None and member.role <= least

    def _entitled_to_invite(self, role: Role, place: _Place) -> bool:
        named = self._named.get(place.device)
        if named is None or place.device not in self._inviters or role < named:
            return self._entitled(place, Role.OWNER)
        member = self._members.get(place.device)
        return member is not None and member.invites(role)

    def _require(self, place: _Place, least: Role) -> None:
        if not self._entitled(place, least):
            raise _VoidError("its issuer had lost the right to it")

    def _genesis(self, op: Genesis, place: _Place) -> None:
        if not place.genesis or self._members:
            raise _VoidError("it is not this folder's genesis")
        self._named[op.owner] = Role.OWNER
        self._members[op.owner] = Member(op.owner, Role.OWNER, op.name, place.lamport)

    def _grant(
        self,
        device: DeviceId,
        role: Role,
        name: str,
        invitation: DeviceId | None,
        place: _Place,
        *,
        effective: bool,
    ) -> None:
        if not is_public_key(device):
            raise _VoidError("the device's key is not valid")
        if device not in self._named and len(self._named) >= DEVICES_MAX:
            raise _VoidError(f"a folder has at most {DEVICES_MAX} devices")
        self._named[device] = min(role, self._named.get(device, role))
        if not effective:
            raise _VoidError("its issuer had lost the right to it")
        if device in self._removed:
            raise _VoidError("the device was removed, which is for good")
        known = self._members.get(device)
        if known is None:
            member = Member(device, role, name, place.lamport, invitation)
        else:  # the wider role wins, so that what was accepted once stays acceptable
            role = known.role if self._changes[device] else min(known.role, role)
            member = replace(known, role=role, name=name)
        self._members[device] = member

    def _remove(self, op: Remove, place: _Place) -> None:
        self._require(place, Role.OWNER)
        if op.device == place.device:
            raise _VoidError("a device cannot remove itself")
        if op.last_seq != place.deps[op.device]:
            raise _VoidError("it does not end the device's log where its issuer had seen it")
        ref = (place.device, place.seq)
        member = self._members.pop(op.device, None)
        known = self._removed.get(op.device)
        name = member.name if member is not None else op.device.short
        removal = Removal(op.device, name, op.last_seq, op.last_hash, (ref,))
        if known is not None:  # two owners removed it: what either had seen counts
            ends = max((known.last_seq, known.last_hash), (op.last_seq, op.last_hash))
            removal = Removal(op.device, known.name, *ends, (*known.refs, ref))
        self._removed[op.device] = removal
        self._close_invitations(op.device, ref)

    def _close_invitations(self, device: DeviceId, ref: Ref) -> None:
        """Those that the device issued or came by: it knows their secrets."""
        for invitation in self._issued.values():
            joined = any(one == device for one, _ in invitation.joins)
            if joined or invitation.ref[0] == device:
                invitation.closings.append(ref)

    def _set_role(self, op: SetRole, place: _Place) -> None:
        self._require(place, Role.OWNER)
        if op.device == place.device:
            raise _VoidError("a device cannot change its own role")
        if op.last_seq != place.deps[op.device]:
            raise _VoidError("it does not end the device's log where its issuer had seen it")
        member = self._members.get(op.device)
        if member is None or not member.role.reads:
            raise _VoidError("the device is no member whose role can change")
        ref = (place.device, place.seq)
        changes = self._changes[op.device]
        for change in changes:
            if place.saw(change.ref):
                change.ends.append(ref)
                if change.through is None:
                    change.through = op.last_seq
        changes.append(_Change(op, ref))
        standing = [change.op for change in changes if change.through is None]
        role = max(one.role for one in standing)
        may_invite = all(one.may_invite for one in standing)
        self._members[op.device] = replace(member, role=role, may_invite=may_invite)
        self._named[op.device] = min(op.role, self._named[op.device])
        if op.may_invite:
            self._inviters.add(op.device)
        if role > member.role or may_invite < member.may_invite:
            self._close_invitations(op.device, ref)

    def _epoch(self, op: Epoch, place: _Place) -> None:
        effective = self._entitled(place, Role.EDITOR)
        number = epoch_number(op.commitment)
        if number in self._epochs:
            raise _VoidError("the epoch exists already")
        self._epochs[number] = (op, place.device)
        self._boxes[number] = defaultdict(list)
        self._seal_to(number, op.sealed)
        if place.genesis and self._first_epoch == NO_EPOCH:
            self._first_epoch = number
        if not effective:  # somebody may have written under it: readable, but not fit to write
            raise _VoidError("its issuer had lost the right to it; it is only good for reading")

    def _seal_to(self, number: int, sealed: Iterable[tuple[DeviceId, bytes]]) -> None:
        for recipient, box in sealed:
            self._boxes[number][recipient].append(box)

    def _invite(self, op: Invite, place: _Place) -> None:
        effective = self._entitled_to_invite(op.role, place)
        if op.key in self._issued:
            raise _VoidError("the invitation exists already")
        if not is_public_key(op.key):
            raise _VoidError("the invitation's key is not valid")
        self._issued[op.key] = _Issued(op, (place.device, place.seq), effective)
        for number, box in op.keys:
            if number in self._epochs:
                self._seal_to(number, [(op.key, box)])
        if not effective:
            raise _VoidError("its issuer had lost the right to it")

    def _join(self, op: Join, place: _Place) -> None:
        effective = self._entitled(place, Role.RELAY)
        invitation = self._issued.get(op.key)
        if invitation is None or not place.saw(invitation.ref):
            raise _VoidError("there is no such invitation")
        if not op.verify(self._folder):
            raise _VoidError("its signatures do not hold")
        if any(place.saw(closing) for closing in invitation.closings):
            raise _VoidError("the invitation is revoked")
        others = {d for d, ref in invitation.joins if d != op.device and place.saw(ref)}
        if len(others) >= invitation.op.uses:
            raise _VoidError("the invitation is used up")
        effective = effective and invitation.effective
        role = invitation.op.role
        self._grant(op.device, role, op.name, op.key, place, effective=effective)
        invitation.joins.append((op.device, (place.device, place.seq)))

    def _finish_invitation(self, one: _Issued) -> Invitation:
        joined = tuple(dict.fromkeys(device for device, _ in one.joins))
        closed = bool(one.closings) or not one.effective or one.ref[0] in self._removed
        return Invitation(one.op, one.ref[0], joined, closed)


def _lowerings(changes: list[_Change]) -> tuple[Lowering, ...]:
    return tuple(
        Lowering(change.ref, change.op.last_seq, change.through, tuple(change.ends))
        for change in changes
        if not change.op.role.writes
    )
