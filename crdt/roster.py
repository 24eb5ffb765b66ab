"""The roster: who is in a folder with which role, which invitations are open, which epochs exist.

`Roster.fold` makes it out of the accepted roster entries (rules in `crdt.roster_fold`); the methods
answer what the acceptance rules, the admitter and the engine ask. Immutable; made anew whenever a
roster entry comes in, which is rare.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from crdt.codec import pack
from crdt.entry import Entry
from crdt.errors import IntegrityError, PeerError
from crdt.ids import DeviceId, FolderId
from crdt.roster_fold import fold
from crdt.roster_ops import Join, Role
from crdt.roster_state import Folded, leads_to
from crdt.seal import EpochKey, FolderKeys, device_of, open_box, open_sealed


class InvitationState(enum.Enum):
    """What an invitation is good for now, by the clock of the asker."""

    OPEN = "open"
    UNKNOWN = "unknown"
    USED = "used up"
    EXPIRED = "expired"
    CLOSED = "revoked"


@dataclass(frozen=True)
class Roster(Folded):
    """See the module; the fields are `Folded`'s."""

    @classmethod
    def fold(cls, folder: FolderId, entries: Iterable[Entry]) -> Self:
        """The roster that these accepted roster entries make, in whatever order they are given."""
        return cls(**vars(fold(folder, entries)))

    @property
    def epoch(self) -> int | None:
        """The epoch for new writes; None when there is none that excludes everybody removed."""
        return self.fit_epochs[0] if self.fit_epochs else None

    def role(self, device: DeviceId) -> Role | None:
        """The role of a member, None for anybody else."""
        member = self.members.get(device)
        return None if member is None else member.role

    def may_write(self, device: DeviceId) -> bool:
        """True for a member that may write tree entries."""
        role = self.role(device)
        return role is not None and role.writes

    def named_role(self, device: DeviceId) -> Role | None:
        """The role under which entries of `device` go into the log, with or without effect."""
        return self.named.get(device)

    def counts(self, device: DeviceId, seq: int) -> bool:
        """True when entry `seq` of `device` has an effect; changes when the roster does."""
        if device not in self.members and device not in self.removed:
            return False
        return not any(
            after < seq and (through is None or seq <= through)
            for after, through in self.uncounted(device)
        )

    def uncounted(self, device: DeviceId) -> list[tuple[int, int | None]]:
        """Which tree entries of a device have no effect: those after the first number, up to the
        second one, or all.
        """
        ranges = [(one.after, one.through) for one in self.lowered.get(device, ())]
        removal = self.removed.get(device)
        return ranges if removal is None else [*ranges, (removal.last_seq, None)]

    def knew_removal(self, entry: Entry) -> bool:
        """True when the author of `entry` had been removed, and had seen it."""
        removal = self.removed.get(entry.header.device)
        return removal is not None and any(
            entry.header.deps.covers(*reference) for reference in removal.refs
        )

    def knew_lowering(self, entry: Entry) -> bool:
        """True when the author of `entry` could not write any more, and had seen that."""
        knew = entry.header.deps.covers
        return any(
            knew(*one.ref) and not any(knew(*end) for end in one.ends)
            for one in self.lowered.get(entry.header.device, ())
        )

    def invitation_state(self, key: DeviceId, now_s: float) -> InvitationState:
        """What the invitation with this public key is good for at `now_s`, seconds since 1970."""
        invitation = self.invitations.get(key)
        if invitation is None:
            return InvitationState.UNKNOWN
        if invitation.closed:
            return InvitationState.CLOSED
        if not invitation.open:
            return InvitationState.USED
        return InvitationState.EXPIRED if now_s > invitation.op.expires_s else InvitationState.OPEN

    def check_join(self, join: Join, now_s: float) -> None:
        """Whether we may carry this join, by our clock; a repetition of a past join is fine.

        Raises:
            PeerError: says which rule the join breaks.
        """
        if not join.verify(self.folder):
            raise PeerError("the join's signatures do not hold for this folder")
        if join.device in self.removed:
            raise PeerError(f"device {join.device.short} was removed; it needs a new identity")
        invitation = self.invitations.get(join.key)
        if invitation is not None and join.device in invitation.joined:
            return
        state = self.invitation_state(join.key, now_s)
        if state is not InvitationState.OPEN:
            raise PeerError(f"the invitation is {state.value}")

    def open_epochs(self, *seeds: bytes) -> dict[int, EpochKey]:
        """The epochs that these Ed25519 seeds (our identity's, an invitation's) open, and all that
        these lead back to. A box that does not open, or opens to another secret than its epoch
        commits to, is passed over: whoever made it only fooled itself.
        """
        opened: dict[int, EpochKey] = {}
        for seed in seeds:
            own = device_of(seed)
            for record in self.epochs.values():
                binding = box_binding(self.folder, record.number)
                for box in record.boxes.get(own, ()):
                    try:
                        secret = open_box(seed, box, associated=binding)
                    except IntegrityError:
                        continue
                    self._keep(opened, record.number, secret)
        pending = list(opened.values())
        while pending:
            key = pending.pop()
            for number, sealed in self.epochs[key.number].op.previous:
                if number in opened or number not in self.epochs:
                    continue
                binding = previous_binding(self.folder, key.number, number)
                try:
                    secret = open_sealed(key.previous_key, sealed, associated=binding)
                except IntegrityError:
                    continue
                if self._keep(opened, number, secret):
                    pending.append(opened[number])
        return opened

    def keys(self, *seeds: bytes) -> FolderKeys:
        """The folder's keys as far as these seeds open them."""
        opened = self.open_epochs(*seeds)
        current = next((number for number in self.fit_epochs if number in opened), None)
        return FolderKeys(self.folder, opened, self.first_epoch, current)

    def lacking(self, device: DeviceId) -> frozenset[int]:
        """The epochs that nobody has sealed to `device` itself, directly or by a way back."""
        given = [n for n, record in self.epochs.items() if device in record.boxes]
        return frozenset(self.epochs) - leads_to(self.epochs, given)

    def _keep(self, opened: dict[int, EpochKey], number: int, secret: bytes) -> bool:
        if len(secret) != 32:
            return False
        key = EpochKey(self.folder, secret)
        if key.commitment != self.epochs[number].op.commitment:
            return False
        opened[number] = key
        return True


def box_binding(folder: FolderId, epoch: int) -> bytes:
    """What an epoch's secret, sealed to somebody, is bound to."""
    return pack(["shoal v1 epoch key", folder, epoch])


def previous_binding(folder: FolderId, epoch: int, previous: int) -> bytes:
    """What the secret of `previous`, sealed under `epoch`, is bound to."""
    return pack(["shoal v1 previous epoch", folder, epoch, previous])
