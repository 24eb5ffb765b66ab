"""Version vectors: which of each device's writes have been seen.

Used for two things with one algebra: a folder's log (`device -> seq`) and one content version
(`device -> counter`).
Source: Parker et al., "Detection of Mutual Inconsistency in Distributed Systems", 1983.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from crdt.ids import DeviceId

COUNTER_MAX: Final = 2**53  # what every msgpack and JSON reader keeps exact
DEVICES_MAX: Final = 1024  # devices that ever wrote to one folder; bounds a vector at 42 KB

Wire = list[list[bytes | int]]


class VersionVector(Mapping[DeviceId, int]):
    """An immutable map from device to the greatest counter seen; absent means 0, zeroes are not
    kept.
    """

    __slots__ = ("_counters", "_hash")

    def __init__(
        self, counters: Mapping[DeviceId, int] | Iterable[tuple[DeviceId, int]] = ()
    ) -> None:
        """Raises ValueError when a counter lies outside 0..COUNTER_MAX or there are too many
        devices.
        """
        self._counters = {d: c for d, c in dict(counters).items() if c}
        self._hash: int | None = None
        if len(self._counters) > DEVICES_MAX:
            raise ValueError(f"a version vector names at most {DEVICES_MAX} devices")
        for counter in self._counters.values():
            if not 0 < counter <= COUNTER_MAX:
                raise ValueError(f"counter {counter} lies outside 1..2**53")

    def __getitem__(self, device: DeviceId) -> int:
        """The counter of `device`, 0 when it was never seen."""
        return self._counters.get(device, 0)

    def __contains__(self, device: object) -> bool:
        return device in self._counters

    def __iter__(self) -> Iterator[DeviceId]:
        return iter(self._counters)

    def __len__(self) -> int:
        return len(self._counters)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VersionVector) and self._counters == other._counters

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._counters.items()))
        return self._hash

    def __repr__(self) -> str:
        inside = ", ".join(f"{d.short}:{c}" for d, c in sorted(self._counters.items()))
        return f"VersionVector({{{inside}}})"

    def __or__(self, other: VersionVector) -> VersionVector:
        """The least vector that dominates both."""
        merged = dict(self._counters)
        for device, counter in other._counters.items():
            if counter > merged.get(device, 0):
                merged[device] = counter
        return VersionVector(merged)

    def dominates(self, other: VersionVector) -> bool:
        """True when everything that `other` has seen, this one has seen too; equal vectors
        dominate each other.
        """
        mine = self._counters
        return all(mine.get(device, 0) >= counter for device, counter in other._counters.items())

    def covers(self, device: DeviceId, counter: int) -> bool:
        """True when the write `counter` of `device` has been seen."""
        return self._counters.get(device, 0) >= counter

    def with_counter(self, device: DeviceId, counter: int) -> VersionVector:
        """This vector, having also seen `counter` of `device`."""
        if self[device] >= counter:
            return self
        return VersionVector({**self._counters, device: counter})

    def to_wire(self) -> Wire:
        """`[[device, counter], ...]`, sorted by device: one vector has one encoding."""
        return [[device, counter] for device, counter in sorted(self._counters.items())]

    @classmethod
    def from_wire(cls, wire: object) -> VersionVector:
        """Strictly parse what `to_wire` made; raises ValueError on anything else."""
        if not isinstance(wire, list) or len(wire) > DEVICES_MAX:
            raise ValueError(f"a version vector is a list of at most {DEVICES_MAX} pairs")
        counters: dict[DeviceId, int] = {}
        previous = b""
        for pair in wire:
            if (
                not isinstance(pair, list)
                or len(pair) != 2
                or not isinstance(pair[0], bytes)
                or type(pair[1]) is not int
            ):
                raise ValueError("a version vector holds [device, counter] pairs")
            device = DeviceId(pair[0])
            if device <= previous or not pair[1]:
                raise ValueError(
                    "a version vector's devices are sorted, distinct, and have counters above 0"
                )
            counters[device] = pair[1]
            previous = device
        return cls(counters)


EMPTY: Final = VersionVector()
