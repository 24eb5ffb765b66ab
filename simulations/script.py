"""Scripts: what happens in a world, written down before it begins.

A script is plain data and says everything that the seed decides but the nodes' own chance: so a
world can be replayed, and a failing one shrunk by leaving steps out. Steps name no path that has to
exist; they pick among what a person finds on the disk at that moment.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

YEAR_NS: Final = 365 * 24 * 3600 * 10**9
DIRECTORIES: Final = ("", "a", "b", "a/c", "b/c")
NAMES: Final = ("x.txt", "y.txt", "z.md", "n.bin", "m.bin")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens. `intrude` is how many operations of the node it waits for first."""

    wait_s: float  # since the step before
    device: int
    verb: str
    args: tuple[float | int | str | bool, ...] = ()
    intrude: int | None = None


@dataclass(frozen=True, slots=True)
class Act:
    """Steps after which all faults stop and the world settles."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """What a device is like."""

    skew_ns: int = 0
    granularity_ns: int = 1
    exchanges: bool = True
    latency_max_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Script:
    """A whole world."""

    seed: int
    devices: tuple[DeviceSpec, ...]
    acts: tuple[Act, ...]
    delay_s: float = 0.001

    @property
    def steps(self) -> int:
        """How many there are in all acts."""
        return sum(len(act.steps) for act in self.acts)


@dataclass(slots=True)
class Mix:
    """How often each verb comes, relative to the others."""

    people: dict[str, float] = field(
        default_factory=lambda: {
            "save": 10,
            "edit": 8,
            "append": 3,
            "slow": 2,
            "rename": 4,
            "move": 3,
            "swap": 1,
            "replace": 1,
            "delete": 4,
            "recreate": 2,
            "copy": 1.5,
            "mkdir": 1,
            "movedir": 4,
            "deltree": 1.5,
            "touch": 0.7,
            "chmod": 0.7,
            "link": 0.7,
        }
    )
    faults: dict[str, float] = field(
        default_factory=lambda: {
            "kill": 3,
            "stop": 1,
            "cut": 2,
            "split": 3,
            "oneway": 1.5,
            "heal": 3,
            "delay": 1,
            "power": 2,
            "fail": 4,
            "deaf": 0.5,
            "overflow": 0.5,
            "jump": 0.5,
        }
    )


def make_script(seed: int, mix: Mix | None = None) -> Script:
    """The world of a seed."""
    chance = random.Random(f"script {seed}")
    mix = mix or Mix()
    count = chance.choice((2, 2, 2, 3, 3, 4))
    devices = tuple(_device(chance) for _ in range(count))
    pace_s = chance.choice((0.01, 0.05, 0.3, 2.0))
    share = chance.choice((0.0, 0.1, 0.25, 0.5))
    acts = tuple(
        Act(
            tuple(
                _step(chance, mix, count, pace_s, share) for _ in range(chance.choice((4, 8, 16)))
            )
        )
        for _ in range(chance.choice((1, 2, 3)))
    )
    return Script(seed, devices, acts, delay_s=chance.choice((0.0, 0.001, 0.02, 0.2)))


def _device(chance: random.Random) -> DeviceSpec:
    return DeviceSpec(
        skew_ns=chance.choice((0, 0, chance.randint(-10 * YEAR_NS, 10 * YEAR_NS))),
        granularity_ns=chance.choice((1, 1, 4_000_000, 1_000_000_000, 2_000_000_000)),
        exchanges=chance.random() < 0.8,
        latency_max_s=chance.choice((0.0, 0.001, 0.01, 0.1)),
    )


def _step(chance: random.Random, mix: Mix, count: int, pace_s: float, share: float) -> Step:
    wait_s = round(pace_s * chance.choice((0, 0.1, 0.5, 1, 1, 3)) * chance.random(), 6)
    device = chance.randrange(count)
    if chance.random() < share:
        verb = _draw(chance, mix.faults)
        return Step(wait_s, device, verb, _fault_args(chance, verb, count), _intrude(chance, 0.6))
    verb = _draw(chance, mix.people)
    args: tuple[float | int | str | bool, ...] = (
        round(chance.random(), 6),  # what it is done to
        round(chance.random(), 6),  # where to, or how
        _size(chance),
        chance.random() < 0.3,  # fsynced
    )
    if verb == "save":
        args = (_path(chance), *args[1:])
    return Step(wait_s, device, verb, args, _intrude(chance, 0.25))


def _draw(chance: random.Random, weights: dict[str, float]) -> str:
    return chance.choices(list(weights), list(weights.values()))[0]


def _intrude(chance: random.Random, share: float) -> int | None:
    return int(40 * chance.random() ** 2) if chance.random() < share else None


def _path(chance: random.Random) -> str:
    directory, name = chance.choice(DIRECTORIES), chance.choice(NAMES)
    return f"{directory}/{name}" if directory else name


def _size(chance: random.Random) -> int:
    return chance.choice((0, 30, 30, 300, 5_000, 20_000, 150_000))


def _fault_args(
    chance: random.Random, verb: str, count: int
) -> tuple[float | int | str | bool, ...]:
    other = chance.randrange(count)
    match verb:
        case "kill" | "stop" | "power":
            return (round(chance.choice((0.0, 0.1, 1.0, 5.0)) * chance.random(), 6),)
        case "cut" | "split" | "oneway" | "heal":
            return (other,)
        case "delay":
            return (other, chance.choice((0.0, 0.01, 0.1, 1.0)))
        case "fail":
            kind = chance.choice(("reads", "writes", "writes", "syncs"))
            return (
                kind,
                _error(chance, kind),
                chance.choice((0, 0, 1, 2, 3, 5, 8, 13, 21)),
                chance.choice((1, 1, 1, 3, 10, 100)),
                kind == "writes" and chance.random() < 0.1,
            )
        case "deaf":
            return (chance.random() < 0.7,)
        case "jump":
            return (round(chance.choice((-1e9, -1e5, -10.0, 10.0, 1e5, 1e9)) * chance.random()),)
        case _:
            return ()


def _error(chance: random.Random, kind: str) -> str:
    errors = {
        "reads": ("EIO", "EACCES", "EMFILE"),
        "writes": ("EIO", "ENOSPC", "EROFS", "EACCES", "EDQUOT"),
        "syncs": ("EIO", "ENOSPC"),
    }
    return chance.choice(errors[kind])
