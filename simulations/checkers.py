"""What must hold when a world has settled. Each check names itself, so that a shrunk script can be
held to the same failure.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulations.device import Device
from simulations.forger import Outsiders, taken
from simulations.ledger import Ledger, Version
from simulations.people import Content, Person


class PromiseError(Exception):
    """A promise was broken."""

    def __init__(self, check: str, message: str) -> None:
        super().__init__(check, message)  # just these, so that it can be sent to a process
        self.check = check
        self.message = message

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


def state(devices: Sequence[Device]) -> str:
    """What changes as long as the world has not settled."""
    parts = []
    for device in devices:
        engine = device.engine
        if engine is not None:
            have = sorted(engine.folder.have.items())
            parts.append(f"{engine.state} {have} {len(engine.folder.pending)}")
    return "\n".join(parts)


def at_rest(devices: Sequence[Device]) -> bool:
    """Whether nobody has anything left to do."""
    return not unrest(devices)


def unrest(devices: Sequence[Device]) -> str:
    """Who still has something to do, and what."""
    lines = []
    have = [device.engine.folder.have for device in devices if device.engine is not None]
    for device in devices:
        engine = device.engine
        if engine is None:
            lines.append(f"{device} does not run")
        elif (
            engine.state != "in sync"
            or engine.needs().files
            or not engine.scans.quiet
            or engine.scans.later
        ):
            waits = [waiting.reason for waiting in engine.apply.waiting.values()]
            why = f"{engine.stopped or ''} {engine.needs()}, waits for {waits}"
            lines.append(f"{device} is {engine.state}: {why}")
        elif engine.folder.have != have[0]:
            lines.append(f"{device} has other entries than {devices[0]}")
    return "; ".join(lines)


def missing(people: Sequence[Person], ledger: Ledger) -> list[Version]:
    """What should be in somebody's tree, and is in none."""
    contents = {c for person in people for c in person.tree().values() if isinstance(c, bytes)}
    return list(ledger.missing(contents))


def check(devices: Sequence[Device], people: Sequence[Person], ledger: Ledger) -> None:
    """Raise `PromiseError` for the first promise that does not hold."""
    trees = [person.tree() for person in people]
    for device, tree in zip(devices, trees, strict=True):
        if tree != trees[0]:
            raise PromiseError("converge", _differ(devices[0], device, trees[0], tree))
    visible = [content for content in trees[0].values() if isinstance(content, bytes)]
    for version in ledger.missing(visible):
        where = _hidden(devices, version.data)
        raise PromiseError(
            "hidden" if where else "lost",
            f"{version.mark.decode()}, saved on {version.device} and replaced by nobody who had "
            f"seen it, is not in the tree; it lies in {where or 'no file of any device'}",
        )
    for line in ledger.wrong(visible):
        raise PromiseError("returned", line)


def check_acceptance(devices: Sequence[Device], outsiders: Outsiders) -> None:
    """Raise `PromiseError` if somebody would take an entry that nobody may take."""
    for device, other in zip(devices, [*devices[1:], devices[0]], strict=True):
        if device.engine is not None:
            for what in taken(device.engine.folder, other.identity, outsiders):
                raise PromiseError("forged", f"{device} would take {what}")


def _differ(one: Device, other: Device, left: dict[str, Content], right: dict[str, Content]) -> str:
    paths = sorted(p for p in left.keys() | right.keys() if left.get(p, 0) != right.get(p, 0))
    return f"{one} and {other} differ at {paths[:5]}"


def _hidden(devices: Sequence[Device], data: bytes) -> list[str]:
    return [
        f"{device}:{path}"
        for device in devices
        for path, content in device.fs.snapshot().items()
        if content == data
    ]
