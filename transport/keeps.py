"""What a member keeps of a folder: one optional message on control streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from crdt.version_vector import COUNTER_MAX
from transport.fields import check_range, get


@dataclass(frozen=True, slots=True)
class Keeps:
    """What its sender keeps: sent when a member leaves a part of the folder out, and in answer.

    `generation` counts the changes of the sender's selection, `knows` is the generation that the
    sender last heard of from the receiver, and `whole` says that the sender leaves nothing out.
    """

    generation: int
    knows: int
    whole: bool
    type: ClassVar[int] = 130
    size_max: ClassVar[int] = 1024

    def __post_init__(self) -> None:
        check_range("generation", self.generation, COUNTER_MAX)
        check_range("knows", self.knows, COUNTER_MAX)

    def to_wire(self) -> dict[str, Any]:
        """See `transport.messages`."""
        return {"generation": self.generation, "knows": self.knows, "whole": self.whole}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See `transport.messages`."""
        return cls(get(wire, "generation", int), get(wire, "knows", int), get(wire, "whole", bool))
