"""What the messages' fields may hold: readers and checks that raise ValueError. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self, TypeVar

from crdt.errors import PeerError
from crdt.ids import BlockId

PROTOCOL_VERSION: Final = 1  # changes with any change that an old node would misunderstand
WANT_MAX: Final = 64  # blocks in one request; all that may be outstanding at one peer
HELD_SIZE_MAX: Final = 3_500  # bytes; hashes of 700 pieces (`node.blocks.pieces`)
REQUEST_MAX: Final = 2**32 - 1
SEALED_BLOCK_SIZE_MAX: Final = 4 * 1024 * 1024 * 9 // 8 + 1024  # Padmé adds 12 % at most, and seal

T = TypeVar("T")


class VersionError(PeerError):
    """The peer speaks another version of the protocol. One of the two needs an update."""


@dataclass(frozen=True, slots=True)
class BlockList:
    """Some blocks of one request; the base of the messages that hold no more."""

    request: int
    blocks: tuple[BlockId, ...]
    count_min: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_range("request", self.request, REQUEST_MAX)
        if not self.count_min <= len(self.blocks) <= WANT_MAX:
            raise ValueError(f"a message names 1 to {WANT_MAX} blocks")
        if len(set(self.blocks)) != len(self.blocks):
            raise ValueError("a message names each block once")

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"request": self.request, "blocks": list(self.blocks)}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        blocks = tuple(BlockId(block) for block in get_all(wire, "blocks", bytes, WANT_MAX))
        return cls(get(wire, "request", int), blocks)


def check_version(wire: dict[str, Any]) -> None:
    """The first thing looked at: all else may mean something else in another version."""
    version = get(wire, "version", int)
    if version != PROTOCOL_VERSION:
        raise VersionError(
            f"speaks protocol version {version}, we speak {PROTOCOL_VERSION}; "
            "the older of the two needs an update"
        )


def check_text(what: str, text: str, size_max: int) -> None:
    """Raise ValueError unless `text` is printable and at most `size_max` bytes."""
    # Surrogates are not printable, so what is left can be encoded.
    if not text.isprintable() or len(text.encode()) > size_max:
        raise ValueError(f"{what} is at most {size_max} bytes of printable text")


def check_range(what: str, value: int, high: int) -> None:
    """Raise ValueError unless `value` is an integer in 0..high."""
    if type(value) is not int or not 0 <= value <= high:
        raise ValueError(f"{what} is an integer in 0..{high}, got {value!r}")


def get(wire: dict[str, Any], name: str, kind: type[T]) -> T:
    """The field `name`, which is exactly a `kind`."""
    value = wire.get(name)
    if type(value) is not kind:  # exactly: True is no integer here
        raise ValueError(f"'{name}' is missing or no {kind.__name__}")
    return value


def get_all(wire: dict[str, Any], name: str, kind: type[T], count_max: int) -> list[T]:
    """The list `name` of at most `count_max` times a `kind`."""
    values = get(wire, name, list)
    if len(values) > count_max or any(type(value) is not kind for value in values):
        raise ValueError(f"'{name}' holds at most {count_max} {kind.__name__}")
    return values
