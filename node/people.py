"""What a running node answers about people and their devices (`node.control.people`).

Each verb checks that it may and can be done before it writes; a refusal changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

import ifaddr
import trio

from crdt.errors import CallerError
from crdt.ids import DeviceId
from crdt.invitation import ADDRESSES_MAX, Invitation
from crdt.recovery import PREFIX_SIZE, SECRET_SIZE, RecoveryPhrase
from crdt.roster import InvitationState, Roster
from crdt.roster_make import invite_op, removal_ops, revocation_ops, set_role_ops
from crdt.roster_ops import USES_MAX, Op
from crdt.roster_ops import Role as RosterRole
from crdt.version_vector import VersionVector
from node.activity.deeds import Deed
from node.activity.journal import newest_deeds
from node.control.facade import DeedInfo, DeviceInfo, InvitationInfo, LocalInfo, Role, SelectionInfo
from node.history.answers import time_text
from node.open_folder import OpenFolder
from node.selecting import choose, selection_info
from node.sync.engine import FolderEngine
from node.sync.relays import relay_addresses
from node.sync.spoken import OPEN_MAX_S, OpenCode
from transport.identity import Identity
from transport.spoken import make_code

if TYPE_CHECKING:
    from node.app import Node

ROLES: Final = {role.name.lower(): role for role in RosterRole}
RECOVERY_S: Final = 100 * 365.25 * 24 * 3600  # paper lasts
RECOVERY_USES: Final = USES_MAX
ID_PREFIX_MIN: Final = 4  # characters of a device's id that may stand for it
NOTHING: Final = "nothing was changed"


class PeopleApi:
    """Implements `PeopleFacade` over a running node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def _find(self, directory: str) -> OpenFolder:
        raise NotImplementedError

    # --- who there is ---------------------------------------------------------------------------

    async def devices(self, directory: str) -> tuple[DeviceInfo, ...]:
        """See `PeopleFacade`."""
        engine = self._find(directory).engine
        return tuple(self._info(engine, device) for device in engine.folder.roster.members)

    def _info(self, engine: FolderEngine, device: DeviceId) -> DeviceInfo:
        member, own = engine.folder.roster.members[device], self._node.identity.device
        peer = engine.peers.get(device)
        connected = device == own or (peer is not None and peer.connected)
        seen_ms = None if peer is None else peer.seen_ns // 1_000_000
        if connected:
            seen_ms = self._node.clock.wall_ns() // 1_000_000
        return DeviceInfo(
            device=device.text,
            name=member.name,
            role=Role(member.role.name.lower()),
            this_device=device == own,
            connected=connected,
            person=member.name.partition("/")[0],
            last_seen=None if seen_ms is None else time_text(seen_ms),
            behind=_behind(engine, device),
            may_invite=member.role is RosterRole.OWNER or member.may_invite,
        )

    # --- letting in and out ---------------------------------------------------------------------

    async def invite(self, directory: str, *, role: Role, uses: int, expires_s: float) -> str:
        """See `NodeFacade`."""
        engine = self._find(directory).engine
        return self._invite(engine, role, uses, expires_s, self._node.random.bytes(32)).text

    async def say_code(self, directory: str, role: Role) -> str:
        """See `PeopleFacade`."""
        engine = self._find(directory).engine
        invitation = self._invite(engine, role, 1, OPEN_MAX_S, self._node.random.bytes(32))
        code = make_code(self._node.random.bytes)
        until_s = trio.current_time() + OPEN_MAX_S
        void = partial(self._void, engine, invitation.key)
        self._node.connections.spoken.open(OpenCode(code, invitation.text, until_s, void))
        return code

    def _void(self, engine: FolderEngine, key: DeviceId) -> None:
        """Somebody guessed wrong: what the code stood for is of no use to anybody any more."""
        engine.warn("", "somebody said wrong words for the spoken code, so it is void now")
        folder = engine.folder
        if folder.roster.invitations[key].open:
            self._write(
                engine, revocation_ops(folder.roster, folder.keys, key, **self._for_epoch())
            )

    async def recovery(self, directory: str) -> str:
        """See `PeopleFacade`."""
        engine = self._find(directory).engine
        secret = self._node.random.bytes(SECRET_SIZE)
        phrase = RecoveryPhrase(secret, bytes(engine.folder.id[:PREFIX_SIZE]))
        self._invite(engine, Role.OWNER, RECOVERY_USES, RECOVERY_S, phrase.seed)
        return phrase.text

    def _invite(
        self, engine: FolderEngine, role: Role, uses: int, expires_s: float, secret: bytes
    ) -> Invitation:
        """Write an invitation with this secret half into the roster; durable when it returns."""
        node = self._node
        folder = engine.folder
        member = folder.roster.members.get(node.identity.device)
        if member is None or not member.invites(ROLES[role.value]):
            raise CallerError(
                f"this device may not invite anybody as {role.value}; {NOTHING}. An owner can, or "
                "can allow it: `shoal role DEVICE ROLE --may-invite`."
            )
        invitation = Invitation(
            folder=folder.id,
            secret=secret,
            inviter=node.identity.device,
            addresses=self._addresses(folder.roster),
            folder_name="".join(c for c in Path(engine.path).name if c.isprintable())[:60],
        )
        op = invite_op(
            folder.roster,
            folder.keys,
            Identity.from_seed(secret).device,
            role=ROLES[role.value],
            uses=uses,
            expires_s=int(self._now_s() + expires_s),
            seed=node.random.bytes(32),
        )
        self._write(engine, [op])
        return invitation

    def _addresses(self, roster: Roster) -> tuple[tuple[str, int], ...]:
        """Where a new device can knock: here, and at the relays, which do not sleep."""
        relays = [(at.host, at.port) for at in relay_addresses(roster).values()]
        own = self._own_addresses()[: max(1, ADDRESSES_MAX - len(relays))]
        return (*own, *relays)[:ADDRESSES_MAX]

    def _own_addresses(self) -> tuple[tuple[str, int], ...]:
        listening = self._node.listening
        assert listening is not None, "a running node listens"
        if listening.host not in {"0.0.0.0", "::"}:  # noqa: S104
            return ((listening.host, listening.port),)
        hosts = [
            str(ip.ip)
            for adapter in ifaddr.get_adapters()
            for ip in adapter.ips
            if ip.is_IPv4 and not str(ip.ip).startswith("127.")
        ]
        return tuple((host, listening.port) for host in hosts or ["127.0.0.1"])[:ADDRESSES_MAX]

    async def invitations(self, directory: str) -> tuple[InvitationInfo, ...]:
        """See `PeopleFacade`."""
        engine = self._find(directory).engine
        known = engine.folder.roster.invitations
        return tuple(self._invitation_info(engine, key) for key in known)

    def _invitation_info(self, engine: FolderEngine, key: DeviceId) -> InvitationInfo:
        roster = engine.folder.roster
        one = roster.invitations[key]
        return InvitationInfo(
            id=key.short,
            role=Role(one.op.role.name.lower()),
            uses=one.op.uses,
            left=max(0, one.op.uses - len(one.joined)),
            expires=time_text(one.op.expires_s * 1000),
            state=roster.invitation_state(key, self._now_s()).value,
            issued_by=engine.folder.name_of(one.issuer),
            joined=tuple(engine.folder.name_of(device) for device in one.joined),
        )

    async def revoke(self, directory: str, invitation: str) -> InvitationInfo:
        """See `PeopleFacade`."""
        engine = self._find(directory).engine
        folder = engine.folder
        key = find_invitation(folder.roster, invitation)
        issuer = folder.roster.invitations[key].issuer
        if issuer != self._node.identity.device:
            self._require_owner(engine, "take an invitation of somebody else's back")
        state = folder.roster.invitation_state(key, self._now_s())
        if state not in {InvitationState.OPEN, InvitationState.EXPIRED}:
            raise CallerError(f"the invitation {key.short} is {state.value} already; {NOTHING}")
        ops = revocation_ops(folder.roster, folder.keys, key, **self._for_epoch())
        self._write(engine, ops)
        return self._invitation_info(engine, key)

    async def remove(self, directory: str, device: str) -> DeviceInfo:
        """See `PeopleFacade`."""
        engine = self._find(directory).engine
        folder = engine.folder
        found = find_device(folder.roster, device)
        self._require_owner(engine, "remove a device")
        info = self._info(engine, found)
        # Looked at first, since it speaks of the folder, not of whom we happen to be.
        position = folder.log.position(found)
        ops = removal_ops(folder.roster, folder.keys, found, position=position, **self._for_epoch())
        if found == self._node.identity.device:
            raise CallerError(
                f"a device cannot remove itself; {NOTHING}. Do it from another owner's device."
            )
        self._write(engine, ops)
        return info

    async def set_role(
        self, directory: str, device: str, role: Role, may_invite: bool | None
    ) -> DeviceInfo:
        """See `PeopleFacade`."""
        engine = self._find(directory).engine
        folder = engine.folder
        found = find_device(folder.roster, device)
        self._require_owner(engine, "change a role")
        member = folder.roster.members[found]
        wanted = ROLES[role.value]
        if may_invite is None:
            may_invite = member.may_invite and wanted is member.role
        ops = set_role_ops(
            folder.roster,
            folder.keys,
            found,
            role=wanted,
            may_invite=may_invite,
            position=folder.log.position(found),
            **self._for_epoch(),
        )
        if found == self._node.identity.device:
            raise CallerError(
                f"a device cannot change its own role; {NOTHING}. Do it from another owner's "
                "device."
            )
        self._write(engine, ops)
        return self._info(engine, found)

    async def deeds(self, path: str, limit: int) -> tuple[DeedInfo, ...]:
        """See `PeopleFacade`."""
        opened = self._find(path)
        relative = Path(path).relative_to(opened.config.path).as_posix()
        found = await newest_deeds(opened.engine, "" if relative == "." else relative, limit)
        return tuple(deed_info(opened.engine, deed) for deed in found)

    async def hook(self, command: str | None) -> str:
        """See `PeopleFacade`."""
        if command is not None:
            self._node.hook.set(command)
        return self._node.hook.command

    async def revert(self, path: str) -> tuple[LocalInfo, ...]:
        """See `PeopleFacade`."""
        opened = self._find(path)
        engine = opened.engine
        if engine.folder.roster.may_write(self._node.identity.device):
            raise CallerError(
                f"this device may write, so what is changed here is no local change; {NOTHING}. "
                "`shoal restore` brings earlier versions back."
            )
        relative = Path(path).relative_to(opened.config.path).as_posix()
        prefix = "" if relative == "." else relative
        for one in engine.local.values():
            if one.action == "created" and prefix.startswith(f"{one.path}/"):
                raise CallerError(
                    f"'{prefix}' lies in '{one.path}', which is here alone; {NOTHING}. Revert that."
                )
        if not engine.allowed():
            raise CallerError(f"the folder is {engine.state}; {NOTHING}")
        return tuple(LocalInfo(c.path, c.action, c.was) for c in await engine.revert(prefix))

    async def select(self, path: str, lives_here: bool | None) -> SelectionInfo:
        """See `PeopleFacade`."""
        opened = self._find(path)
        relative = Path(path).relative_to(opened.config.path).as_posix()
        engine = opened.engine
        if lives_here is not None:
            if engine.stopped is not None:
                raise CallerError(f"the folder is stopped: {engine.stopped} {NOTHING}")
            choose(engine, "" if relative == "." else relative, lives_here=lives_here)
        return selection_info(engine)

    # --- what they share ------------------------------------------------------------------------

    def _require_owner(self, engine: FolderEngine, what: str) -> None:
        if engine.folder.roster.role(self._node.identity.device) is not RosterRole.OWNER:
            raise CallerError(f"only an owner of the folder can {what}; {NOTHING}")

    def _now_s(self) -> float:
        return self._node.clock.wall_ns() / 1e9

    def _for_epoch(self) -> _ForEpoch:
        random = self._node.random
        return {
            "epoch_secret": random.bytes(32),
            "seed": random.bytes(32),
            "now_s": self._now_s(),
        }

    def _write(self, engine: FolderEngine, ops: Iterable[Op]) -> None:
        if not engine.folder.roster_is_held:
            raise CallerError(
                f"this device has not received all about the folder's members yet; {NOTHING}. Try "
                "again once another device is connected."
            )
        if engine.awaits_own_log:
            raise CallerError(
                "this device waits for another one to return what it had written before; "
                f"{NOTHING}. Try again once another device is connected."
            )
        engine.folder.commit_roster(ops)
        engine.roster_changed()


class _ForEpoch(TypedDict):
    epoch_secret: bytes
    seed: bytes
    now_s: float


def deed_info(engine: FolderEngine, deed: Deed) -> DeedInfo:
    """A deed as the control API tells it."""
    name = engine.folder.name_of(deed.device)
    time = time_text(deed.time_ms)
    return DeedInfo(time, deed.device.text, name, deed.action, deed.path, deed.was, deed.about)


def role_of(engine: FolderEngine) -> Role | None:
    """This device's role in a folder, None when it is no member (any more)."""
    role = engine.folder.roster.role(engine.folder.identity.device)
    return None if role is None else Role(role.name.lower())


def find_device(roster: Roster, text: str) -> DeviceId:
    """The member that a person means by a name, a person's name, an id or the start of one.

    Raises:
        CallerError: none is called that, or more than one.
    """
    compact = text.upper().replace("-", "")
    by_name = [one for one in roster.members.values() if one.name == text]
    by_person = [one for one in roster.members.values() if one.name.partition("/")[0] == text]
    by_id = [
        one
        for one in roster.members.values()
        if len(compact) >= ID_PREFIX_MIN and one.device.text.replace("-", "").startswith(compact)
    ]
    found = by_name or by_person or by_id
    if len(found) == 1:
        return found[0].device
    if found:
        which = ", ".join(f"{one.name} ({one.device.short})" for one in found)
        raise CallerError(f"'{text}' may be any of these: {which}. Name one; {NOTHING}.")
    for removal in roster.removed.values():
        if text in {removal.name, removal.device.short, removal.device.text}:
            raise CallerError(f"{removal.name} was removed from this folder already; {NOTHING}")
    names = ", ".join(sorted(one.name for one in roster.members.values()))
    raise CallerError(f"no device of this folder is called '{text}'; {NOTHING}. There are: {names}")


def find_invitation(roster: Roster, text: str) -> DeviceId:
    """The invitation that a person means by its id or its text.

    Raises:
        CallerError: there is no such invitation in this folder, or more than one.
    """
    if "-" in text:
        key = Invitation.from_text(text).key
        found = [key] if key in roster.invitations else []
    else:
        wanted = text.upper()
        found = [key for key in roster.invitations if wanted and key.text.startswith(wanted)]
    if len(found) != 1:
        what = "no invitation" if not found else "more than one invitation"
        raise CallerError(
            f"{what} of this folder has the id '{text[:20]}'; {NOTHING}. `shoal invitations` lists "
            "them."
        )
    return found[0]


def _behind(engine: FolderEngine, device: DeviceId) -> int | None:
    """How many entries are not yet whole on a device's disk; None when it never said."""
    folder = engine.folder
    if device == folder.identity.device:
        others = [peer.have for peer in engine.peers.values() if peer.connected]
        return max((_lacks(folder.complete, have) for have in [folder.have, *others]), default=0)
    peer = engine.peers.get(device)
    if peer is None:
        return None
    relays = folder.roster.role(device) is RosterRole.RELAY
    return _lacks(peer.have if relays else peer.complete, folder.have)


def _lacks(there: VersionVector, wanted: VersionVector) -> int:
    return sum(max(0, seq - there[device]) for device, seq in wanted.items())
