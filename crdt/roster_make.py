"""Roster operations of our own: what a device writes to begin a folder, invite, admit and remove.

Pure: secrets and seeds are arguments, fresh and unpredictable ones each time. `CallerError` when
the operation would be void at every receiver; nothing is built then.
"""

from __future__ import annotations

from collections.abc import Iterable

from crdt.entry import LogPosition
from crdt.errors import CallerError
from crdt.ids import DeviceId, FolderId
from crdt.roster import InvitationState, Roster, box_binding, previous_binding
from crdt.roster_ops import (
    Epoch,
    Genesis,
    Invite,
    Join,
    Op,
    Remove,
    Revoke,
    Role,
    Secrets,
    SetRole,
    Share,
)
from crdt.roster_state import Invitation, Member, leads_to
from crdt.seal import (
    NONCE_SIZE,
    EpochKey,
    FolderKeys,
    derive_key,
    is_public_key,
    seal,
    seal_to,
)


def genesis_ops(
    owner: DeviceId, name: str, *, nonce: bytes, epoch_secret: bytes, seed: bytes
) -> tuple[FolderId, tuple[Op, ...]]:
    """Begin a folder: the body of the owner's first entry, and the folder's id.

    Args:
        owner: This device.
        name: This device's name, which every member and relay sees.
        nonce: 32 random bytes.
        epoch_secret: 32 random bytes, the first epoch's.
        seed: 32 random bytes for sealing.
    """
    genesis = Genesis(owner, _device_name(name), nonce)
    key = EpochKey(genesis.folder, epoch_secret)
    return genesis.folder, (genesis, _epoch(key, {owner}, [], seed))


def invite_op(
    roster: Roster,
    keys: FolderKeys,
    key: DeviceId,
    *,
    role: Role,
    uses: int,
    expires_s: int,
    seed: bytes,
) -> Invite:
    """Let whoever holds the secret half of `key` add `uses` devices until `expires_s`."""
    if key in roster.invitations:
        raise CallerError("this invitation exists already")
    heads = _heads(roster, keys) if role.reads else []
    boxes = tuple((head.number, _box(key, head, seed)) for head in heads)
    try:
        return Invite(key, role, uses, expires_s, boxes)
    except ValueError as error:
        raise CallerError(f"cannot invite: {error}") from None


def join_op(folder: FolderId, invitation_seed: bytes, seed: bytes, name: str) -> Join:
    """Made by a joining device, carried into the log by whoever admits it."""
    return Join.signed(folder, invitation_seed, seed, _device_name(name))


def removal_ops(
    roster: Roster,
    keys: FolderKeys,
    device: DeviceId,
    *,
    position: LogPosition,
    epoch_secret: bytes,
    seed: bytes,
    now_s: float,
) -> tuple[Op, ...]:
    """Remove `device` and begin an epoch that it cannot read.

    Args:
        roster: The roster now.
        keys: Our keys.
        device: A member other than this device.
        position: Where its log ends here; the entry's deps must say the same.
        epoch_secret: 32 random bytes.
        seed: 32 random bytes for sealing.
        now_s: Seconds since 1970; expired invitations do not get the new key.
    Raises:
        CallerError: it is no member, or the folder's last owner.
    """
    member = _member(roster, device)
    if _is_last_owner(roster, member):
        raise CallerError(f"{member.name} is the folder's last owner; nothing was changed")
    removal = Remove(device, position.seq, position.head)
    if not member.role.reads:
        return (removal,)  # a relay never had a key
    lost = {device} | _known_invitations(roster, device)
    epoch = epoch_op(roster, keys, secret=epoch_secret, seed=seed, now_s=now_s, without=lost)
    return removal, epoch


def set_role_ops(
    roster: Roster,
    keys: FolderKeys,
    device: DeviceId,
    *,
    role: Role,
    may_invite: bool,
    position: LogPosition,
    epoch_secret: bytes,
    seed: bytes,
    now_s: float,
) -> tuple[Op, ...]:
    """Give another role to `device`; one that closes invitations begins an epoch that whoever knows
    their secrets cannot read by them. Arguments as in `removal_ops`.

    Raises:
        CallerError: it is no member, has that role already, or cannot have it.
    """
    member = _member(roster, device)
    if not (role.reads and member.role.reads):
        raise CallerError("a relay stays a relay, and no other member becomes one; invite anew")
    if (role, may_invite) == (member.role, member.may_invite):
        raise CallerError(f"{member.name} has that role already; nothing was changed")
    if _is_last_owner(roster, member) and role is not Role.OWNER:
        raise CallerError(f"{member.name} is the folder's last owner; nothing was changed")
    change = SetRole(device, role, may_invite, position.seq, position.head)
    narrower = role > member.role or may_invite < member.may_invite
    open_ones = {key for key, one in roster.invitations.items() if not one.closed}
    lost = _known_invitations(roster, device) & open_ones if narrower else set()
    if not lost:
        return (change,)
    epoch = epoch_op(roster, keys, secret=epoch_secret, seed=seed, now_s=now_s, without=lost)
    return change, epoch


def revocation_ops(
    roster: Roster,
    keys: FolderKeys,
    key: DeviceId,
    *,
    epoch_secret: bytes,
    seed: bytes,
    now_s: float,
) -> tuple[Op, ...]:
    """Take an invitation back, and begin an epoch that its holder cannot read.

    Raises:
        CallerError: there is no such invitation, or it is closed or used up already.
    """
    invitation = roster.invitations.get(key)
    if invitation is None or not invitation.open:
        raise CallerError("there is no such open invitation")
    if not invitation.op.role.reads:
        return (Revoke(key),)
    epoch = epoch_op(roster, keys, secret=epoch_secret, seed=seed, now_s=now_s, without={key})
    return Revoke(key), epoch


def epoch_op(
    roster: Roster,
    keys: FolderKeys,
    *,
    secret: bytes,
    seed: bytes,
    now_s: float,
    without: Iterable[DeviceId] = (),
) -> Epoch:
    """Begin an epoch for all reading members and open invitations; needed whenever
    `FolderKeys.current` is None, and then any writing member may do it.
    """
    recipients = {one.device for one in roster.members.values() if one.role.reads}
    recipients |= {key for key, one in roster.invitations.items() if _reads(roster, one, now_s)}
    key = EpochKey(roster.folder, secret)
    return _epoch(key, recipients - set(without), _heads(roster, keys), seed)


def share_ops(
    roster: Roster, keys: FolderKeys, devices: Iterable[DeviceId], *, seed: bytes
) -> tuple[Op, ...]:
    """Seal to each of `devices` what it lacks and we have; nothing when they lack nothing.

    A device that joined calls this for itself, after which it needs the invitation no more; and for
    others that `Roster.lacking` names, because they came in while an epoch began elsewhere.
    """
    boxes: dict[int, list[tuple[DeviceId, bytes]]] = {}
    for device in sorted(set(devices)):
        role = roster.role(device)
        if role is None or not role.reads:
            continue
        lacking = roster.lacking(device)
        wanted = {number: key for number, key in keys.epochs.items() if number in lacking}
        for key in _heads(roster, FolderKeys(keys.folder, wanted, keys.first, keys.current)):
            boxes.setdefault(key.number, []).append((device, _box(device, key, seed)))
    return tuple(Share(number, tuple(sealed)) for number, sealed in sorted(boxes.items()))


def _member(roster: Roster, device: DeviceId) -> Member:
    member = roster.members.get(device)
    if member is None:
        raise CallerError(f"device {device.short} is not a member of this folder")
    return member


def _is_last_owner(roster: Roster, member: Member) -> bool:
    return [one for one in roster.members.values() if one.role is Role.OWNER] == [member]


def _known_invitations(roster: Roster, device: DeviceId) -> set[DeviceId]:
    """The invitations whose secrets the device knows: it issued them, or came by them."""
    return {
        key
        for key, one in roster.invitations.items()
        if one.issuer == device or device in one.joined
    }


def _reads(roster: Roster, invitation: Invitation, now_s: float) -> bool:
    state = roster.invitation_state(invitation.op.key, now_s)
    return state is InvitationState.OPEN and invitation.op.role.reads


def _device_name(name: str) -> str:
    """Checked in the operations; here only the error speaks to the person."""
    try:
        Genesis(DeviceId(bytes(32)), name, bytes(32))
    except ValueError as error:
        raise CallerError(str(error)) from None
    return name


def _heads(roster: Roster, keys: FolderKeys) -> list[EpochKey]:
    """The fewest of our epochs that lead back to all others."""
    covered: set[int] = set()
    heads = []
    for number in reversed(list(roster.epochs)):
        if number in keys.epochs and number not in covered:
            heads.append(keys.epochs[number])
            covered |= leads_to(roster.epochs, [number])
    return sorted(heads, key=lambda key: key.number)


def _epoch(
    key: EpochKey, recipients: Iterable[DeviceId], previous: list[EpochKey], seed: bytes
) -> Epoch:
    boxes = tuple((r, _box(r, key, seed)) for r in sorted(recipients) if is_public_key(r))
    return Epoch(key.commitment, boxes, _previous(key, previous))


def _previous(key: EpochKey, previous: list[EpochKey]) -> Secrets:
    # The new epoch's key seals each of these once, so a nonce may follow from what it seals.
    return tuple(
        (
            old.number,
            seal(
                key.previous_key,
                old.secret,
                nonce=derive_key("shoal v1 previous nonce", old.commitment)[:NONCE_SIZE],
                associated=previous_binding(key.folder, key.number, old.number),
            ),
        )
        for old in previous
    )


def _box(recipient: DeviceId, key: EpochKey, seed: bytes) -> bytes:
    binding = box_binding(key.folder, key.number)
    return seal_to(recipient, key.secret, seed=seed, associated=binding)
