"""Whole devices and relays in one process: real engines, sessions and connections, over links,
disks and clocks in memory. Waiting takes no time (`autojump_clock`).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable

import trio

from crdt.ids import FolderId
from crdt.roster_make import genesis_ops, share_ops
from crdt.roster_ops import Add, Role
from discovery.candidates import Candidates, Source
from node.files.memory import MemoryFileSystem
from node.files.root_marker import RootId, create_root_marker
from node.files.watcher import FakeWatcher
from node.home import FolderConfig
from node.index.database import Database, open_database
from node.open_folder import Ports, start_folder, wire_folder
from node.relay.limits import Limits
from node.relay.policy import Policy, PolicyKind
from node.relay.server import Relay
from node.relay.storage import Storage
from node.relay.upkeep import Upkeep
from node.sync.connections import Connections
from node.sync.engine import FolderEngine
from node.sync.folder import Folder
from node.sync.relays import bring_folder
from tests.support.memory_storage import MemoryStorage
from tests.support.two_folders import InlineThreads, SeededRandom, StepClock
from transport.address import Address
from transport.identity import Identity
from transport.memory import MemoryLink, MemoryNetwork
from transport.memory_connection import MemoryConnection

MARKER = RootId(b"m" * 16)
EVENTUALLY_S = 3_600.0  # of a clock that jumps


class Member:
    """One device with one folder. `awake` runs it; between two times only disk and index stay."""

    def __init__(self, world: World, number: int, role: Role) -> None:
        self.world = world
        self.number = number
        self.role = role
        self.name = f"member {number}"
        self.random = SeededRandom(1_000 * world.size + number)
        self.identity = Identity.from_seed(self.random.bytes(32))
        self.address = Address(f"10.0.1.{number}", 22071)
        self.fs = MemoryFileSystem(clock=world.clock.wall_ns)
        self.database: Database = open_database(None)
        self.engine: FolderEngine
        self.connections: Connections
        create_root_marker(self.fs, MARKER)

    def write(self, path: str, data: bytes) -> None:
        """A person saves a file."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.unlink(path)
        with self.fs.create(path) as handle:
            handle.write_at(0, data)

    def tree(self) -> dict[str, object]:
        """Path -> content of what people see."""
        shown = self.fs.snapshot().items()
        return {path: what for path, what in shown if path and path.split("/")[0] != ".shoal"}

    @property
    def warnings(self) -> str:
        """All that the person is told."""
        return "\n".join(self.engine.warnings.values())

    @contextlib.asynccontextmanager
    async def awake(self, *peers: Address) -> AsyncIterator[Member]:
        """Run this device; it knows `peers` beside the relays of its roster."""
        world = self.world
        ports = Ports(self.identity, world.clock, self.random, InlineThreads())
        config = FolderConfig(world.folder, f"/{self.name}", bytes(MARKER))
        self.engine = wire_folder(
            config,
            ports,
            database=self.database,
            fs=self.fs,
            watcher=FakeWatcher(self.fs),
            roster=world.roster,
        )
        engines: dict[FolderId, FolderEngine] = {}
        candidates = Candidates()
        for peer in peers:
            candidates.add(peer, Source.STATIC, trio.current_time())
        self.link: MemoryLink = world.network.link(self.identity, self.address)
        self.connections = Connections(
            self.link,
            self.identity,
            engines,
            candidates,
            world.clock,
            self.random,
            name=self.name,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(self.connections.serve)
            await start_folder(
                self.engine, engines, self.connections, nursery, save_roster=lambda _: None
            )
            self.connections.open()
            yield self
            nursery.cancel_scope.cancel()

    async def until(self, what: Callable[[], object]) -> None:
        """Wait until it is true of this device."""
        with trio.fail_after(EVENTUALLY_S):
            while not what():
                await self.engine.changed.wait_past(self.engine.changed.count)

    async def held_by(self, devices: int) -> None:
        """As `shoal wait`."""
        with trio.fail_after(EVENTUALLY_S):
            await self.engine.wait_held(devices)

    def connection_to(self, relay: RelayHost) -> MemoryConnection:
        """The connection to a relay."""
        (found,) = [c for c in self.link.connections if c.peer == relay.identity.device]
        return found

    async def add_relay(self, address: Address, token: str = "") -> None:
        """As `shoal relay add`."""
        device = await bring_folder(self.link, address, self.world.folder, token)
        self.engine.folder.commit_roster([Add(device, Role.RELAY, str(address))])
        self.engine.roster_changed()


class RelayHost:
    """A relay: its storage stays when it does not run."""

    def __init__(self, world: World, number: int, *, limits: Limits | None = None) -> None:
        self.world = world
        self.identity = Identity.from_seed(bytes([200 + number]) * 32)
        self.address = Address(f"10.0.2.{number}", 22072)
        self.storage: Storage = MemoryStorage()
        self.limits = limits or Limits()
        self.policy = Policy(PolicyKind.OPEN)
        self.relay: Relay
        self.is_copy = False  # restored from a backup
        self.time_s = 1_000  # on the clock of its grace periods

    @contextlib.asynccontextmanager
    async def awake(self) -> AsyncIterator[RelayHost]:
        """Run it."""
        link = self.world.network.link(self.identity, self.address)
        self.relay = Relay(
            link,
            self.identity,
            self.storage,
            self.world.clock,
            policy=self.policy,
            limits=self.limits,
            time_s=lambda: self.time_s,
            is_copy=self.is_copy,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(self.relay.serve)
            yield self
            nursery.cancel_scope.cancel()

    async def collect(self) -> int:
        """As upkeep does every hour."""
        upkeep = Upkeep(
            self.storage,
            lambda: self.time_s,
            self.relay.counters,
            gone=self.relay.gone,
            grace_s=self.limits.drop_grace_s,
        )
        return await upkeep.collect()


class World:
    """One folder, its members, and relays."""

    def __init__(self, members: int, *, roles: dict[int, Role] | None = None) -> None:
        self.clock = StepClock()
        self.network = MemoryNetwork()
        self.noise = random.Random(members)
        self.size = members
        roles = roles or {}
        self.members = [
            Member(self, number, roles.get(number, Role.EDITOR)) for number in range(1, members + 1)
        ]
        self._found()

    async def introduce(self, *relays: RelayHost) -> None:
        """The owner adds the relays while all members are awake, so that all hear of it."""
        owner = self.members[0]
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(owner.awake())
            for member in self.members[1:]:
                await stack.enter_async_context(member.awake(owner.address))
            for relay in relays:
                await owner.add_relay(relay.address)
            count = len(self.members) + len(relays)
            for member in self.members:
                await member.until(lambda m=member: len(m.engine.folder.roster.members) == count)  # type: ignore[misc]
            for relay in relays:  # a relay without the roster would turn the others away
                device = relay.identity.device
                await owner.until(lambda d=device: owner.engine.in_sync(d))  # type: ignore[misc]

    def _found(self) -> None:
        owner = self.members[0]
        self.folder, ops = genesis_ops(
            owner.identity.device,
            owner.name,
            nonce=owner.random.bytes(32),
            epoch_secret=owner.random.bytes(32),
            seed=owner.random.bytes(32),
        )
        made = Folder(
            folder=self.folder,
            database=owner.database,
            identity=owner.identity,
            clock=self.clock,
            random=owner.random,
        )
        made.commit_roster(ops)
        others = self.members[1:]
        if others:
            made.commit_roster([Add(m.identity.device, m.role, m.name) for m in others])
            devices = [member.identity.device for member in others]
            for op in share_ops(made.roster, made.keys, devices, seed=owner.random.bytes(32)):
                made.commit_roster([op])
        self.roster = made.roster_entries
