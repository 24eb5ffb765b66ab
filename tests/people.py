"""Devices with logs in memory, for tests of entries and rosters: no disk, no network, no chance."""

from __future__ import annotations

from collections.abc import Iterable

import blake3

from crdt.acceptance import Accept, Duplicate, Verdict, judge
from crdt.entry import START, Entry, EntryKind, LogPosition, build, build_tree
from crdt.ids import DeviceId, FolderId, ItemId
from crdt.roster import Roster
from crdt.roster_make import (
    epoch_op,
    genesis_ops,
    invite_op,
    join_op,
    removal_ops,
    revocation_ops,
    share_ops,
)
from crdt.roster_ops import Add, Op, Role, pack_ops
from crdt.seal import FolderKeys, device_of
from crdt.slot import Placement, Slot
from crdt.version_vector import VersionVector


def secret(*parts: object) -> bytes:
    """32 bytes that follow from `parts`."""
    return blake3.blake3(repr(parts).encode()).digest()


class Person:
    """One device: its seed, and the logs as it knows them."""

    def __init__(self, name: str, folder: FolderId | None = None) -> None:
        self.name = name
        self.seed = secret("person", name)
        self.device = device_of(self.seed)
        self.folder = folder or FolderId(bytes(32))
        self.entries: dict[tuple[DeviceId, int], Entry] = {}
        self.arrivals: list[Entry] = []
        self.seeds = [self.seed]
        self.roster = Roster.fold(self.folder, [])
        self._draws = 0

    def enter(self, folder: FolderId) -> None:
        self.folder = folder
        self.roster = Roster.fold(folder, [])

    def draw(self) -> bytes:
        self._draws += 1
        return secret("draw", self.name, self._draws)

    # --- the logs

    @property
    def positions(self) -> dict[DeviceId, LogPosition]:
        ends: dict[DeviceId, LogPosition] = {}
        for entry in self.arrivals:
            ends[entry.header.device] = entry.position
        return ends

    @property
    def have(self) -> VersionVector:
        return VersionVector({device: one.seq for device, one in self.positions.items()})

    @property
    def lamport(self) -> int:
        return max((one.lamport for one in self.positions.values()), default=0)

    @property
    def keys(self) -> FolderKeys:
        return self.roster.keys(*self.seeds)

    def known_hash(self, device: DeviceId, seq: int) -> bytes | None:
        entry = self.entries.get((device, seq))
        return None if entry is None else entry.hash

    def judge(self, entry: Entry) -> Verdict:
        return judge(
            entry,
            positions=self.positions,
            roster=self.roster,
            own=self.device,
            known_hash=self.known_hash,
        )

    def receive(self, entry: Entry) -> Verdict:
        verdict = self.judge(entry)
        if isinstance(verdict, Accept):
            self._keep(entry)
        return verdict

    def hear(self, *others: Person) -> None:
        """Take everything that `others` have and that we accept."""
        for other in others:
            for entry in list(other.arrivals):
                verdict = self.receive(entry)
                assert isinstance(verdict, Accept | Duplicate), verdict

    def _keep(self, entry: Entry) -> None:
        self.entries[entry.header.device, entry.header.seq] = entry
        self.arrivals.append(entry)
        if entry.header.kind is EntryKind.ROSTER:
            rosters = [e for e in self.arrivals if e.header.kind is EntryKind.ROSTER]
            self.roster = Roster.fold(self.folder, rosters)

    # --- writing

    def sign(
        self,
        body: bytes,
        kind: EntryKind = EntryKind.ROSTER,
        *,
        epoch: int = 0,
        lamport: int | None = None,
    ) -> Entry:
        return build(
            self.seed,
            folder=self.folder,
            after=self.positions.get(self.device, START),
            deps=self.have,
            lamport=self.lamport + 1 if lamport is None else lamport,
            kind=kind,
            body=body,
            epoch=epoch,
        )

    def do(self, *ops: Op, lamport: int | None = None) -> Entry:
        entry = self.sign(pack_ops(ops), lamport=lamport)
        self._keep(entry)
        return entry

    def tree_entry(self, writes: Iterable[tuple[ItemId, Slot]] | None = None) -> Entry:
        position = self.positions.get(self.device, START)
        keys = self.keys
        assert keys.current is not None
        lamport = self.lamport + 1
        if writes is None:
            item = ItemId(secret("item", self.name, position.seq)[:16])
            placement = Placement(lamport, ItemId(bytes(16)), f"{self.name}-{position.seq}")
            writes = [(item, Slot(position.seq + 1, (placement,)))]
        return build_tree(
            self.seed,
            key=keys.epoch(keys.current),
            after=position,
            deps=self.have,
            lamport=lamport,
            writes=writes,
            nonce=self.draw()[:24],
        )

    def write(self) -> Entry:
        entry = self.tree_entry()
        self._keep(entry)
        return entry

    # --- people

    def found(self) -> None:
        self.folder, ops = genesis_ops(
            self.device, self.name, nonce=self.draw(), epoch_secret=self.draw(), seed=self.draw()
        )
        self.do(*ops)

    def add(self, other: Person, role: Role) -> Entry:
        """An `Add`, and the keys with it, as `shoal` never does (it invites), but may."""
        other.enter(self.folder)
        entry = self.do(Add(other.device, role, other.name))
        shares = share_ops(self.roster, self.keys, [other.device], seed=self.draw())
        if shares:
            self.do(*shares)
        return entry

    def invite(
        self, label: str, role: Role = Role.EDITOR, uses: int = 1, expires_s: int = 1000
    ) -> bytes:
        seed = secret("invitation", label)
        self.do(
            invite_op(
                self.roster,
                self.keys,
                device_of(seed),
                role=role,
                uses=uses,
                expires_s=expires_s,
                seed=self.draw(),
            )
        )
        return seed

    def admit(self, other: Person, invitation: bytes) -> Entry:
        """Carry the join of `other`; rules that only the admitter checks are not checked."""
        other.enter(self.folder)
        other.seeds.append(invitation)
        return self.do(join_op(self.folder, invitation, other.seed, other.name))

    def remove(self, other: Person, *, lamport: int | None = None) -> Entry:
        ops = removal_ops(
            self.roster,
            self.keys,
            other.device,
            position=self.positions.get(other.device, START),
            epoch_secret=self.draw(),
            seed=self.draw(),
            now_s=0,
        )
        return self.do(*ops, lamport=lamport)

    def revoke(self, invitation: bytes) -> Entry:
        ops = revocation_ops(
            self.roster,
            self.keys,
            device_of(invitation),
            epoch_secret=self.draw(),
            seed=self.draw(),
            now_s=0,
        )
        return self.do(*ops)

    def begin_epoch(self) -> Entry:
        keys = self.keys
        return self.do(epoch_op(self.roster, keys, secret=self.draw(), seed=self.draw(), now_s=0))

    def share(self, *others: Person) -> Entry:
        devices = [other.device for other in others]
        return self.do(*share_ops(self.roster, self.keys, devices, seed=self.draw()))


def meet(*people: Person) -> None:
    """Everybody hears everybody until nobody learns anything new."""
    while True:
        before = [len(person.arrivals) for person in people]
        for person in people:
            person.hear(*(other for other in people if other is not person))
        if before == [len(person.arrivals) for person in people]:
            return


def folder_of(owner: Person, **roles: Role) -> dict[str, Person]:
    """`owner` founds a folder and adds a device for each role; all have heard it."""
    owner.found()
    people = {name: Person(name) for name in roles}
    for name, role in roles.items():
        owner.add(people[name], role)
    for person in people.values():
        person.hear(owner)
    return people
