"""A simulated device: a disk, an index and an identity that last, and the lives of its node.

The node is the real one, wired by `node.open_folder` as always; only its ports are ours.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import trio

from crdt.ids import FolderId
from discovery.candidates import Candidates, Source
from node.files.faulty import Crash, FaultyFileSystem
from node.files.memory import MemoryFileSystem
from node.files.root_marker import RootId, create_root_marker
from node.files.watcher import FakeWatcher
from node.home import FolderConfig
from node.index.database import open_database
from node.open_folder import Ports, start_folder, wire_folder
from node.sync.connections import Connections
from node.sync.engine import FolderEngine
from simulations.clock import SimClock, SimRandom, SimThreads
from simulations.disk import Life, SimDatabase
from simulations.script import DeviceSpec
from transport.address import Address
from transport.identity import Identity
from transport.memory import MemoryLink, MemoryNetwork

PORT: Final = 1


class Device:
    """One device of a world."""

    def __init__(
        self,
        number: int,
        seed: int,
        spec: DeviceSpec,
        network: MemoryNetwork,
        note: Callable[[str], None],
    ) -> None:
        self.number = number
        self.name = f"D{number}"
        self.spec = spec
        self.address = Address(f"10.0.0.{number + 1}", PORT)
        self.clock = SimClock(spec.skew_ns)
        self.random = SimRandom(f"device {seed} {number}")
        self.chance = random.Random(f"threads {seed} {number}")
        self.identity = Identity.from_seed(self.random.bytes(32))
        self.fs = MemoryFileSystem(
            clock=self.clock.wall_ns,
            granularity_ns=spec.granularity_ns,
            exchanges=spec.exchanges,
        )
        self.index: sqlite3.Connection = open_database(None).connection
        self.roster: list[bytes] = []
        self.config: FolderConfig | None = None
        self.life: Life | None = None
        self.engine: FolderEngine | None = None
        self.watcher: FakeWatcher | None = None
        self.link: MemoryLink | None = None
        self.deaf = False
        self.struck = 0  # faults, in all lives
        self._network = network
        self._note = note
        self._scope: trio.CancelScope | None = None
        self._ended = trio.Event()
        self._ended.set()

    def __str__(self) -> str:
        return self.name

    def join(self, folder: FolderId, roster: Iterable[bytes]) -> None:
        """Become a member's device, whose roster entry exists already."""
        marker = RootId(self.random.bytes(16))
        create_root_marker(self.fs, marker)
        self.roster = list(roster)
        self.config = FolderConfig(folder, f"/{self.name}", bytes(marker))

    @property
    def runs(self) -> bool:
        """Whether a node is running here."""
        return self._scope is not None

    # --- lives ----------------------------------------------------------------------------------

    def start(self, nursery: trio.Nursery, peers: Sequence[Address]) -> None:
        """Start the node; does nothing when one runs already."""
        if self._scope is None:
            self._note(f"{self} starts")
            self.life = Life(note=lambda line: self._note(f"  {self} {line}"))
            self._scope = trio.CancelScope()
            self._ended = trio.Event()
            nursery.start_soon(self._live, self._scope, self.life, peers)

    async def _live(self, scope: trio.CancelScope, life: Life, peers: Sequence[Address]) -> None:
        try:
            with scope:
                await self._run(life, peers)
        except* Crash:
            pass  # the process died in the middle of an operation
        finally:
            self.struck += life.struck
            life.crashed = True
            self.engine = self.watcher = self.link = self._scope = None
            self._ended.set()
            self._note(f"{self} ended")

    async def _run(self, life: Life, peers: Sequence[Address]) -> None:
        assert self.config is not None
        engines: dict[FolderId, FolderEngine] = {}
        candidates = Candidates()
        for address in peers:
            candidates.add(address, Source.STATIC, trio.current_time())
        link = self.link = self._network.link(self.identity, self.address)
        connections = Connections(
            link, self.identity, engines, candidates, self.clock, self.random, name=self.name
        )
        threads = SimThreads(self.chance, self.spec.latency_max_s)
        watcher = self.watcher = FakeWatcher(self.fs)
        watcher.deaf = self.deaf
        engine = self.engine = wire_folder(
            self.config,
            Ports(self.identity, self.clock, self.random, threads),
            database=SimDatabase(self.index, life),
            fs=FaultyFileSystem(self.fs, life),
            watcher=watcher,
            roster=self.roster,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(connections.serve)
            await start_folder(engine, engines, connections, nursery, save_roster=self._save_roster)
            connections.open()

    def _save_roster(self, entries: Sequence[bytes]) -> None:
        self.roster = list(entries)

    async def stop(self) -> None:
        """As by SIGTERM: connections say goodbye."""
        if self._scope is not None:
            self._scope.cancel()
            await self._ended.wait()

    def kill(self) -> None:
        """As by kill -9: nothing that is not done yet will be done."""
        if self._scope is not None and self.life is not None:
            self.life.crashed = True
            if self.link is not None:
                self.link.crash()
            self._scope.cancel()

    async def wait_ended(self) -> None:
        """Return when no node runs here."""
        await self._ended.wait()

    def set_deaf(self, deaf: bool) -> None:
        """Whether the watcher loses events without a word."""
        self.deaf = deaf
        if self.watcher is not None:
            self.watcher.deaf = deaf
