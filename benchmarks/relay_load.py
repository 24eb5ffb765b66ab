"""A relay under load: 200 devices of 50 folders, each saving a small file every 5 seconds.

    python -m benchmarks.relay_load [--devices 200] [--folders 50] [--seconds 60]

The relay is a process of its own, as people start it, its home on a real disk. The devices are not:
a few processes hold all of them. Each device has its own key, UDP socket and QUIC connection and
runs the real client (engine, sessions, depositor); only its disk and its index are in memory, and
it knows no address but the relay's. All of it shares this machine, so what the devices need of it
is missing to the relay.

Latency is that of a push as people see it: from the save on one disk to the file on the other one,
watcher, scan, relay and apply included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from crdt.ids import FolderId
from crdt.roster_make import genesis_ops, share_ops
from crdt.roster_ops import Add, Role
from discovery.candidates import Candidates
from node.files.memory import MemoryFileSystem
from node.files.root_marker import RootId, create_root_marker
from node.files.watcher import FakeWatcher
from node.home import FolderConfig
from node.index.database import open_database
from node.open_folder import Ports, start_folder, wire_folder
from node.ports import SystemClock, SystemRandom
from node.sync.connections import Connections
from node.sync.engine import FolderEngine
from node.sync.folder import Folder
from node.sync.relays import bring_folder
from tests.support.processes import ROOT
from tests.support.relays import RelayProcess
from tests.support.two_folders import InlineThreads
from transport.address import Address
from transport.identity import Identity
from transport.quic import QuicLink

SAVE_EVERY_S = 5.0
FILE_SIZE = 500  # bytes: travels within its entry
IDLE_S = 20.0
CONNECTED_MAX_S = 120.0
CALM_S = 10.0  # after the last save, for what is on its way
MEDIAN_MAX_S = 1.0
MEMORY_MAX = 500 * 10**6
MARKER = RootId(b"m" * 16)
LOOPBACK = Address("127.0.0.1", 0)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


# --- one process full of devices ------------------------------------------------------------------


@dataclass
class Member:
    """One device with one folder, on a disk in memory."""

    name: str
    folder: FolderId
    identity: Identity
    fs: MemoryFileSystem
    engine: FolderEngine
    link: QuicLink
    saved: dict[bytes, float]  # by all members of the folder: content -> when
    waited_s: list[float] = field(default_factory=list)
    saves: int = 0

    def save(self) -> None:
        """A person saves this device's own file."""
        self.saves += 1
        data = f"{self.name} {self.saves} ".encode().ljust(FILE_SIZE, b".")
        self.saved[data] = trio.current_time()
        self.fs.write_file(f"{self.name}.txt", data)

    def hear(self, path: str) -> None:
        """Something changed on this disk: a file of somebody else has come?"""
        if not path.endswith(".txt") or "/" in path or path == f"{self.name}.txt":
            return
        with contextlib.suppress(OSError):
            began = self.saved.get(self.fs.read_file(path))
            if began is not None:
                self.waited_s.append(trio.current_time() - began)


async def hold_devices(relay: Address, folders: int, members: int) -> None:
    """Run `folders` folders of `members` devices each; obey the lines on standard input."""
    everybody: list[Member] = []
    async with contextlib.AsyncExitStack() as stack:
        for number in range(folders):
            everybody += await stack.enter_async_context(_folder(relay, number, members))
        for member in everybody:
            await _until_in_sync(member.engine)
        _say({"devices": len(everybody)})
        while True:
            line = await trio.to_thread.run_sync(sys.stdin.readline)
            if not line.strip():
                return
            _say(await _load(everybody, float(line)))


async def _until_in_sync(engine: FolderEngine) -> None:
    """Wait until the relay and this device have all that the other has."""
    roster = engine.folder.roster
    (relay,) = [device for device, one in roster.members.items() if one.role is Role.RELAY]
    with trio.fail_after(CONNECTED_MAX_S):
        while not engine.in_sync(relay):
            await engine.changed.wait_past(engine.changed.count)


async def _load(everybody: list[Member], seconds: float) -> dict[str, Any]:
    """Let all of them save, and collect how long each waited for the others' files."""
    for member in everybody:
        member.waited_s.clear()
    before = sum(member.saves for member in everybody)

    async def work(member: Member) -> None:
        await trio.sleep(random.uniform(0, SAVE_EVERY_S))
        while True:
            member.save()
            await trio.sleep(SAVE_EVERY_S)

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for member in everybody:
                nursery.start_soon(work, member)
    await trio.sleep(CALM_S)
    saves = sum(member.saves for member in everybody) - before
    return {"saves": saves, "waited_s": [member.waited_s for member in everybody]}


@contextlib.asynccontextmanager
async def _folder(relay: Address, number: int, members: int) -> AsyncIterator[list[Member]]:
    """A folder that the relay keeps, its members awake."""
    random_port, clock = SystemRandom(), SystemClock()
    identities = [Identity.from_seed(random_port.bytes(32)) for _ in range(members)]
    owner = identities[0]
    folder, ops = genesis_ops(
        owner.device,
        "owner",
        nonce=random_port.bytes(32),
        epoch_secret=random_port.bytes(32),
        seed=random_port.bytes(32),
    )
    databases = [open_database(None) for _ in identities]
    made = Folder(
        folder=folder, database=databases[0], identity=owner, clock=clock, random=random_port
    )
    made.commit_roster(ops)
    others = [identity.device for identity in identities[1:]]
    made.commit_roster([Add(device, Role.EDITOR, "editor") for device in others])
    for op in share_ops(made.roster, made.keys, others, seed=random_port.bytes(32)):
        made.commit_roster([op])
    async with trio.open_nursery() as nursery:
        links = [QuicLink(identity, LOOPBACK) for identity in identities]
        serving: list[Member] = []
        for index, (identity, database, link) in enumerate(
            zip(identities, databases, links, strict=True)
        ):
            fs = MemoryFileSystem(clock=clock.wall_ns)
            create_root_marker(fs, MARKER)
            name = f"f{number}d{index}"
            engine = wire_folder(
                FolderConfig(folder, f"/{name}", bytes(MARKER)),
                Ports(identity, clock, random_port, InlineThreads()),
                database=database,
                fs=fs,
                watcher=FakeWatcher(fs),
                roster=made.roster_entries,
            )
            engines: dict[FolderId, FolderEngine] = {}
            connections = Connections(
                link, identity, engines, Candidates(), clock, random_port, name=name
            )
            await nursery.start(connections.serve)
            if not index:
                device = await bring_folder(link, relay, folder, "")
                engine.folder.commit_roster([Add(device, Role.RELAY, str(relay))])
                made = engine.folder
            await start_folder(engine, engines, connections, nursery, save_roster=lambda _: None)
            connections.open()
            if not index:
                await _until_in_sync(engine)  # before, the relay knows nobody else
            saved = serving[0].saved if serving else {}
            member = Member(name, folder, identity, fs, engine, link, saved)
            fs.listeners.append(member.hear)
            serving.append(member)
        yield serving
        nursery.cancel_scope.cancel()


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


# --- the relay and its meters ---------------------------------------------------------------------


@dataclass
class Crowd:
    """The processes that hold the devices."""

    processes: list[subprocess.Popen[str]]

    @classmethod
    def of(cls, relay: Address, folders: int, members: int, processes: int) -> Crowd:
        """Start them; they are connected when it returns."""
        shares = [len(range(one, folders, processes)) for one in range(processes)]
        command = [sys.executable, "-m", "benchmarks.relay_load", "--hold", str(relay)]
        crowd = cls([
            subprocess.Popen(
                [*command, "--folders", str(share), "--devices", str(share * members)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            )
            for share in shares if share
        ])  # fmt: skip
        crowd.answers()
        return crowd

    def answers(self) -> list[dict[str, Any]]:
        """The next line of each."""
        found = []
        for process in self.processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"a process of devices ended with code {process.wait()}")
            found.append(json.loads(line))
        return found

    def tell(self, line: str) -> None:
        """One line to each."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{line}\n")
            process.stdin.flush()

    def end(self) -> None:
        """Let them go."""
        for process in self.processes:
            process.kill()
            process.wait()


def cpu_s(pid: int) -> float:
    """CPU seconds that a process used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def starved_s(pid: int) -> float:
    """Seconds that a process's main thread wanted a processor and got none: others had them."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def memory(pid: int, what: str = "VmRSS") -> int:
    """Bytes: `VmRSS` now, `VmHWM` the most so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {what} of process {pid}")


def measure(devices: int, folders: int, seconds: float, processes: int) -> bool:
    """Run it and print the figures; True if all limits were kept."""
    with tempfile.TemporaryDirectory() as base, RelayProcess(Path(base), "relay") as relay:
        relay.up()
        pid = relay.pid
        alone = memory(pid)
        print(f"relay alone: {alone / 1e6:.0f} MB", flush=True)
        crowd = Crowd.of(Address.from_text(relay.address), folders, devices // folders, processes)
        try:
            connections = relay.counter("connections")
            print(f"{connections} devices in {folders} folders are connected", flush=True)
            time.sleep(IDLE_S / 4)
            idle, before = memory(pid), cpu_s(pid)
            time.sleep(IDLE_S)
            spent = cpu_s(pid) - before
            kilobytes = (idle - alone) / connections / 1e3
            milliseconds = 1e3 * spent / IDLE_S / connections
            print(f"idle: {idle / 1e6:.0f} MB; a connection costs {kilobytes:.0f} kB "
                  f"and {milliseconds:.2f} ms of CPU a second", flush=True)  # fmt: skip
            pids = [pid, *(process.pid for process in crowd.processes)]
            before, starved = cpu_s(pid), [starved_s(one) for one in pids]
            crowd.tell(str(seconds))
            results = crowd.answers()
            busy = (cpu_s(pid) - before) / seconds
            shares = [
                (starved_s(one) - was) / seconds for one, was in zip(pids, starved, strict=True)
            ]
        finally:
            crowd.end()
        kept = report(results, devices // folders, busy, memory(pid, "VmHWM"))
        print(f"waited in vain for a processor, since others had it: the relay {shares[0]:.0%} "
              f"of the time, the devices {max(shares[1:]):.0%}")  # fmt: skip
        return kept


def report(results: list[dict[str, Any]], members: int, busy: float, peak: int) -> bool:
    """Print what the load did; True if all limits were kept."""
    by_device = [waits for result in results for waits in result["waited_s"]]
    saves = sum(result["saves"] for result in results)
    waits = sorted(wait for device in by_device for wait in device)
    medians = [statistics.median(device) if device else float("inf") for device in by_device]
    late = waits[int(0.99 * len(waits))] if waits else float("inf")
    print(f"load: {saves} saves, {len(waits)} of {saves * (members - 1)} files seen elsewhere")
    print(f"push latency: median {statistics.median(waits):.3f} s, 99 % {late:.3f} s, "
          f"most {waits[-1]:.3f} s")  # fmt: skip
    print(f"slowest device's median: {max(medians):.3f} s (at most {MEDIAN_MAX_S} s)")
    print(f"relay under load: {busy:.0%} of a core, {peak / 1e6:.0f} MB at most "
          f"(at most {MEMORY_MAX / 1e6:.0f} MB)")  # fmt: skip
    kept = max(medians) <= MEDIAN_MAX_S and peak < MEMORY_MAX
    print("all limits kept" if kept else "LIMITS MISSED")
    return kept


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay_load", description=__doc__)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--folders", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=2, help="that hold the devices")
    parser.add_argument("--hold", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    members = asked.devices // asked.folders
    if asked.hold:
        trio.run(hold_devices, Address.from_text(asked.hold), asked.folders, members)
        return 0
    return 0 if measure(asked.devices, asked.folders, asked.seconds, asked.processes) else 1


if __name__ == "__main__":
    sys.exit(main())
