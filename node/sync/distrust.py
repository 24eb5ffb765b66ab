"""What a folder knows of its relays: what they durably have, and what does not fit together.

A relay cannot forge, but it can forget, withhold and lie:

    rollback      it has less than it once said to have: restored from a backup, or worse
    withholding   it told another member that it has entries which it does not give to us
    empty words   it says that it has entries, and does not hand them out
    fork          it shows another entry where we have one (`transport.session`): its author signed
                  two, and the relay shows each half of the folder one of them

Members tell each other what each relay last told them (`Seen`), so withholding is found as soon as
two of them meet directly. Whatever is found is a warning that names the relay, and who says so
where it is another's word; nothing is changed by it. What we hold is pushed to the relay again by
the ordinary exchange.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import trio

from crdt.ids import DeviceId
from crdt.roster_ops import Role
from crdt.version_vector import EMPTY, VersionVector

if TYPE_CHECKING:
    from node.sync.engine import FolderEngine

LOOK_EVERY_S: Final = 5.0
PATIENCE_S: Final = 30.0  # what is on its way needs time: entries, words of what relays have


class RelayWatch:
    """What is known of the relays of one folder, and what does not fit together."""

    def __init__(self, engine: FolderEngine) -> None:
        self._engine = engine
        self._told: dict[DeviceId, VersionVector] = {}  # by each relay, the most ever
        self._others: dict[DeviceId, dict[DeviceId, VersionVector]] = {}  # relay -> member -> told
        self._behind_since: dict[tuple[DeviceId, str], float] = {}
        self._deposited: dict[DeviceId, VersionVector] = {}

    # --- what a relay durably has ---------------------------------------------------------------

    def holds_all(self, relay: DeviceId) -> bool:
        """True when it durably has our entries and every block of the tree that we see. It cannot
        know itself what belongs to an entry; whoever deposits there does.
        """
        peer, have = self._engine.peers.get(relay), self._engine.folder.have
        at = self._deposited.get(relay)
        if peer is None or at is None:
            return False
        return at.dominates(have) and peer.have.dominates(have)

    def set_deposited(self, relay: DeviceId, at: VersionVector | None) -> None:
        """Up to which log position a relay durably has everything; None: not known any more."""
        if self._deposited.get(relay) != at:
            self._deposited.pop(relay, None)
            if at is not None:
                self._deposited[relay] = at
            self._engine.changed.ring()

    def set_full(self, relay: DeviceId, why: str) -> None:
        """A relay says why it takes nothing more; empty: it does again."""
        if self._engine.folder.roster.role(relay) is not Role.RELAY:
            return
        start = f"relay {relay.short} is full"
        self._unsay(start)
        if why:
            self._engine.warn(
                "", f"{start}: {why}. Nothing is lost; devices go on syncing directly."
            )
        self._engine.changed.ring()

    def set_refusal(self, relay: DeviceId, why: str) -> None:
        """A relay does not serve us; empty: it does again."""
        start = f"relay {relay.short} does not serve this folder"
        self._unsay(start)
        if why:
            self._engine.warn("", f"{start}: {why}. This device tries again; nothing is lost.")

    def _unsay(self, start: str) -> None:
        for message in [one for one in self._engine.warnings if one.startswith(start)]:
            del self._engine.warnings[message]

    # --- what does not fit together -------------------------------------------------------------

    def relay_told(self, relay: DeviceId, have: VersionVector) -> None:
        """A connected relay said what it has."""
        self.set_refusal(relay, "")
        before = self._told.get(relay)
        if before is None:
            known = self._engine.peers.get(relay)  # from before a restart
            before = EMPTY if known is None else known.have
        lost = [device for device, seq in before.items() if not have.covers(device, seq)]
        if lost:
            self._engine.warn(
                "",
                f"relay {relay.short} has forgotten entries of {self._names(lost)} that it had "
                "confirmed: was it restored from a backup? Nothing is lost; it gets them again.",
            )
        self._told[relay] = have if lost else before | have

    def member_told(self, member: DeviceId, seen: Mapping[DeviceId, VersionVector]) -> None:
        """Another member says what relays last told it."""
        for relay, have in seen.items():
            if self._engine.folder.roster.role(relay) is Role.RELAY:
                self._others.setdefault(relay, {})[member] = have

    @property
    def seen(self) -> dict[DeviceId, VersionVector]:
        """What the folder's relays last told us, for other members."""
        roster = self._engine.folder.roster
        return {relay: have for relay, have in self._told.items() if roster.role(relay) is not None}

    async def serve(self) -> None:
        """Compare now and then, until cancelled."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            now = trio.current_time()
            for relay, told in list(self._told.items()):
                peer = self._engine.peers.get(relay)
                if peer is None or not peer.connected:
                    self._forget(relay)
                    continue
                self._look(relay, told, now)

    def _look(self, relay: DeviceId, told: VersionVector, now: float) -> None:
        ours = self._engine.folder.have
        owed = [device for device, seq in told.items() if not ours.covers(device, seq)]
        if self._lasts((relay, ""), bool(owed), now):
            self._engine.warn(
                "",
                f"relay {relay.short} says that it has entries of {self._names(owed)}, and does "
                "not hand them out. Another device or relay may have them.",
            )
        for member, have in self._others.get(relay, {}).items():
            kept = [d for d, seq in have.items() if not told.covers(d, seq)]
            if self._lasts((relay, member.short), bool(kept), now):
                who = self._engine.folder.name_of(member)
                self._engine.warn(
                    "",
                    f"relay {relay.short} told {who} that it has entries of {self._names(kept)}, "
                    "and keeps them from this device. Do not trust it; your files are safe.",
                )

    def _lasts(self, key: tuple[DeviceId, str], behind: bool, now: float) -> bool:
        """True once `behind` has held long enough; said once, until it holds no more."""
        if not behind:
            self._behind_since.pop(key, None)
            return False
        since = self._behind_since.setdefault(key, now)
        if now - since < PATIENCE_S:
            return False
        self._behind_since[key] = float("inf")
        return True

    def _forget(self, relay: DeviceId) -> None:
        for key in [key for key in self._behind_since if key[0] == relay]:
            del self._behind_since[key]

    def _names(self, devices: list[DeviceId]) -> str:
        names = sorted(self._engine.folder.name_of(device) for device in devices)
        return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
