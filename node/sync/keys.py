"""Keeps the folder's keys in order: begins an epoch when none is fit, shares keys that are lacking.

Both are roster entries of our own, and harmless when two devices write them at once. What is needed
follows from the roster alone, so nothing is remembered: `tend_keys` is called whenever the roster
changed or a peer came, and does nothing nearly always.
"""

from __future__ import annotations

from collections.abc import Iterable

from crdt.ids import DeviceId
from crdt.roster import Roster
from crdt.roster_make import epoch_op, share_ops
from node.sync.folder import Folder


def tend_keys(folder: Folder, connected: Iterable[DeviceId]) -> bool:
    """Do what the keys need of us.

    Args:
        folder: Ours.
        connected: The devices that hear us now.
    Returns: True when we wrote a roster entry.
    """
    own = folder.identity.device
    role = folder.roster.role(own)
    if role is None or not role.reads or not folder.roster_is_held or not folder.keys.epochs:
        return False
    wrote = False
    if folder.roster.epoch is None and role.writes:
        op = epoch_op(
            folder.roster,
            folder.keys,
            secret=folder.random.bytes(32),
            seed=folder.random.bytes(32),
            now_s=folder.clock.wall_ns() / 1e9,
        )
        folder.commit_roster([op])
        wrote = True
    devices = [own] if folder.roster.lacking(own) else []
    lacking = {device for device in folder.roster.members if _lacks(folder.roster, device)}
    helpers = {own, *connected} & (folder.roster.members.keys() - lacking)
    if helpers and own == min(helpers):  # one is enough
        devices += sorted(lacking - {own})
    ops = share_ops(folder.roster, folder.keys, devices, seed=folder.random.bytes(32))
    if ops:
        folder.commit_roster(ops)
    return wrote or bool(ops)


def _lacks(roster: Roster, device: DeviceId) -> bool:
    """True for a reading member that cannot open some epoch, by itself or by its invitation."""
    member = roster.members[device]
    if not member.role.reads:
        return False
    lacking = roster.lacking(device)
    if member.invitation is not None:
        lacking &= roster.lacking(member.invitation)
    return bool(lacking)
