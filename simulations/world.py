"""A world: devices that run the real node, a network between them, people, and a script.

One trio run under a clock that jumps, on one thread; whatever chance there is comes from the seed.
So the same script gives the same trace, byte for byte, in any process. After each act all faults
stop, everything is healed and started, and within `SETTLE_S` of simulated time the world must have
settled and must stand up to the checkers.
"""

from __future__ import annotations

import errno
import gc
import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import blake3
import trio
import trio.testing

from crdt.entry import START
from crdt.roster_make import genesis_ops, removal_ops, share_ops
from crdt.roster_ops import Add, Role
from node.index.database import open_database
from node.sync.folder import Folder
from simulations import checkers
from simulations.checkers import PromiseError
from simulations.clock import SimClock, SimRandom
from simulations.device import Device
from simulations.disk import KINDS, Armed, EndlessError, Interruption
from simulations.forger import Outsiders
from simulations.ledger import Ledger
from simulations.people import Person
from simulations.script import Script, Step
from transport.identity import Identity
from transport.memory import MemoryNetwork

SETTLE_S: Final = 600.0  # back-off of dials and of what waits is a minute at most each
LOOK_S: Final = 0.5  # between two looks whether it has settled
STEADY_LOOKS: Final = 4  # that must agree


@dataclass(slots=True)
class Result:
    """What became of a world."""

    seed: int
    failure: PromiseError | None
    digest: str  # of the trace
    counts: Counter[str] = field(default_factory=Counter)
    simulated_s: float = 0.0
    trace: list[str] = field(default_factory=list)


class Bugs(logging.Handler):
    """Keeps what the node itself calls a bug, or a peer's: peers in this world are honest."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []
        self._note = note
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Look at one line."""
        line = self.format(record)
        self._note(f"    log {line}")
        is_rail = " stopped: " in line  # whether it stays stopped is for the checkers to see
        if (record.levelno >= logging.ERROR and not is_rail) or "broke the protocol" in line:
            self.found.append(line)


class World:
    """Runs one script."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.counts: Counter[str] = Counter()
        self.trace: list[str] = []
        self.ledger = Ledger()
        self.network: MemoryNetwork
        self.devices: list[Device] = []
        self.people: list[Person] = []
        self._chance = random.Random(f"world {script.seed}")

    def note(self, line: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{trio.current_time():.6f} {line}")

    async def run(self) -> None:
        """Play the script; raises `PromiseError`."""
        self.network = MemoryNetwork(delay_s=self.script.delay_s)
        self.devices = [
            Device(number, self.script.seed, spec, self.network, self.note)
            for number, spec in enumerate(self.script.devices)
        ]
        self.outsiders = _found(self.script.seed, self.devices)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.people = [
                Person(one.name, one.fs, self.ledger, self._chance, self.note, nursery)
                for one in self.devices
            ]
            for device in self.devices:
                self._start(device)
            for act in self.script.acts:
                for step in act.steps:
                    await trio.sleep(step.wait_s)
                    self._step(step)
                await self._calm()
                await self._settle()
                self._check()
                tree = self.people[0].tree().values()
                self.ledger.settled(content for content in tree if isinstance(content, bytes))
            nursery.cancel_scope.cancel()

    def _check(self) -> None:
        missing = checkers.missing(self.people, self.ledger)
        self.counts["bytes lost"] += sum(len(version.data) for version in missing)
        checkers.check(self.devices, self.people, self.ledger)
        checkers.check_acceptance(self.devices, self.outsiders)

    # --- steps ----------------------------------------------------------------------------------

    def _step(self, step: Step) -> None:
        device = self.devices[step.device]
        is_fault = hasattr(self, f"_fault_{step.verb}")
        what = self._fault if is_fault else self._person
        self.note(f"step {step}")
        if step.intrude is not None and device.life is not None and device.runs:
            strike = lambda: what(device, step)  # noqa: E731 - bound to this step
            device.life.interruptions.append(Interruption(step.intrude, strike))
        else:
            what(device, step)

    def _person(self, device: Device, step: Step) -> None:
        self.counts["actions"] += 1
        self.people[device.number].act(step.verb, step.args)

    def _fault(self, device: Device, step: Step) -> None:
        self.counts[step.verb] += 1
        self.note(f"{step.verb} strikes {device}")
        getattr(self, f"_fault_{step.verb}")(device, *step.args)

    def _start(self, device: Device) -> None:
        others = [one.address for one in self.devices if one is not device]
        device.start(self._nursery, others)

    def _start_later(self, device: Device, delay_s: float) -> None:
        async def start() -> None:
            await device.wait_ended()
            await trio.sleep(delay_s)
            self._start(device)

        self._nursery.start_soon(start)

    def _kill(self, device: Device) -> None:
        """End the process, perhaps between an operation and the index's word about it: then nobody
        knows after the start what the person had before the eyes.
        """
        if device.life is not None:
            tree = self.people[device.number].tree()
            for path in sorted(device.life.in_flight() & tree.keys()):
                content = tree[path]
                self.ledger.blur(content if isinstance(content, bytes) else None)
        device.kill()

    def _fault_kill(self, device: Device, delay_s: float) -> None:
        self._kill(device)
        self._start_later(device, delay_s)

    def _fault_stop(self, device: Device, delay_s: float) -> None:
        self._nursery.start_soon(device.stop)
        self._start_later(device, delay_s)

    def _fault_power(self, device: Device, delay_s: float) -> None:
        self._kill(device)
        device.fs.power_cut(self._chance)
        tree = self.people[device.number].tree().values()
        on_disk = [content for content in tree if isinstance(content, bytes)]
        self.counts["bytes cut"] += self.ledger.power_cut(device.name, on_disk)
        self._start_later(device, delay_s)

    def _fault_cut(self, device: Device, other: int) -> None:
        self.network.cut(device.address, self.devices[other].address)
        self.network.cut(self.devices[other].address, device.address)

    def _fault_split(self, device: Device, other: int) -> None:
        if other != device.number:
            self.network.partition(device.address, self.devices[other].address)

    def _fault_oneway(self, device: Device, other: int) -> None:
        if other != device.number:
            self.network.partition(device.address, self.devices[other].address, both=False)

    def _fault_heal(self, device: Device, other: int) -> None:
        self.network.heal(device.address, self.devices[other].address)

    def _fault_delay(self, device: Device, other: int, delay_s: float) -> None:
        self.network.set_delay(device.address, self.devices[other].address, delay_s)

    def _fault_fail(
        self, device: Device, kind: str, error: str, skip: int, times: int, after: bool
    ) -> None:
        if device.life is not None:
            number = getattr(errno, error)
            device.life.armed.append(Armed(number, KINDS[kind], skip, times, after))

    def _fault_deaf(self, device: Device, deaf: bool) -> None:
        device.set_deaf(deaf)

    def _fault_overflow(self, device: Device) -> None:
        if device.watcher is not None:
            device.watcher.lose_events()

    def _fault_jump(self, device: Device, by_s: float) -> None:
        device.clock.skew_ns += int(by_s * 1e9)

    # --- after an act ---------------------------------------------------------------------------

    async def _calm(self) -> None:
        """All faults stop; everybody runs and can reach everybody."""
        self.note("calm")
        for device in self.devices:
            if device.life is not None:
                device.life.strike_all()
        for one in self.devices:
            if one.life is not None:
                one.life.armed.clear()
            for other in self.devices:
                if one is not other:
                    self.network.heal(one.address, other.address)
                    self.network.set_delay(one.address, other.address, self.script.delay_s)
        await trio.sleep(10.0)  # whoever was stopped has been started, slow writers are done
        for device in self.devices:
            self._start(device)
            if device.deaf:
                device.set_deaf(False)
                if device.engine is not None:  # its hourly full scan, early
                    device.engine.scans.everything()

    async def _settle(self) -> None:
        """Wait until nothing changes any more, or fail."""
        began, steady, before = trio.current_time(), 0, ""
        while steady < STEADY_LOOKS:
            await trio.sleep(LOOK_S)
            state = checkers.state(self.devices)
            steady = steady + 1 if state == before and checkers.at_rest(self.devices) else 0
            before = state
            if trio.current_time() > began + SETTLE_S:
                raise PromiseError("progress", checkers.unrest(self.devices))
        self.note(f"settled after {trio.current_time() - began:.1f} s")


def _found(seed: int, devices: list[Device]) -> Outsiders:
    """Make all devices members of a new folder; returns who else has to do with it."""
    owner, chance = devices[0], SimRandom(f"folder {seed}")
    folder, ops = genesis_ops(
        owner.identity.device,
        owner.name,
        nonce=chance.bytes(32),
        epoch_secret=chance.bytes(32),
        seed=chance.bytes(32),
    )
    made = Folder(
        folder=folder,
        database=open_database(None),
        identity=owner.identity,
        clock=SimClock(),
        random=chance,
    )
    made.commit_roster(ops)
    others = [device.identity.device for device in devices[1:]]
    made.commit_roster([Add(one, Role.EDITOR, f"D{n}") for n, one in enumerate(others, 1)])
    outsiders = Outsiders(*(Identity.from_seed(chance.bytes(32)) for _ in range(3)))
    made.commit_roster(
        [
            Add(outsiders.reader.device, Role.READER, "reader"),
            Add(outsiders.removed.device, Role.EDITOR, "removed"),
        ]
    )
    made.commit_roster(share_ops(made.roster, made.keys, others, seed=chance.bytes(32)))
    made.commit_roster(
        removal_ops(
            made.roster,
            made.keys,
            outsiders.removed.device,
            position=START,
            epoch_secret=chance.bytes(32),
            seed=chance.bytes(32),
            now_s=0.0,
        )
    )
    for device in devices:
        device.join(folder, made.roster_entries)
    return outsiders


def run_script(script: Script) -> Result:
    """Run a world from beginning to end, in a trio run of its own."""
    world = World(script)
    clock = trio.testing.MockClock(autojump_threshold=0)
    core = trio._core._run  # noqa: SLF001 - the only way to a deterministic order of tasks
    vars(core)["_ALLOW_DETERMINISTIC_SCHEDULING"] = True
    core._r.seed(script.seed)  # noqa: SLF001
    logger = logging.getLogger("shoal")
    bugs = Bugs(lambda line: world.trace.append(f"{clock.current_time():.6f} {line}"))
    logger.addHandler(bugs)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    failure: PromiseError | None = None
    gc.disable()  # finalizers would run at moments that nobody has decided
    try:
        trio.run(world.run, clock=clock)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the world failed
        failure = _failure(error)
    finally:
        gc.enable()
        logger.removeHandler(bugs)
        logger.setLevel(level)
        logger.propagate = propagate
    if bugs.found and failure is None:
        failure = PromiseError("bug", bugs.found[0])
    world.counts["failed operations"] = sum(device.struck for device in world.devices)
    digest = blake3.blake3("\n".join(world.trace).encode("utf-8", "surrogateescape")).hexdigest(8)
    return Result(script.seed, failure, digest, world.counts, clock.current_time(), world.trace)


def _failure(error: BaseException) -> PromiseError:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, PromiseError):
        return error
    if isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, EndlessError):
        return PromiseError("endless", str(error))
    return PromiseError("bug", f"{type(error).__name__}: {error}").with_traceback(
        error.__traceback__
    )
