"""Messages of a stream on which a device that is no member yet asks to be let in, before `Join`.

Pure. `Pake` and `Whispered` carry a spoken code (see `transport.spoken`); `WhichFolder` asks a
member or a relay for the folder that the connection's invitation is of, which whoever has nothing
but a recovery phrase cannot know. Shapes and errors as in `transport.messages`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

from crdt.ids import FolderId
from transport.fields import PROTOCOL_VERSION, check_version, get

PAKE_SIZE_MAX: Final = 128  # bytes; a SPAKE2 element is 33, its proof 32
WHISPER_SIZE_MAX: Final = 4096  # bytes of a sealed invitation


@dataclass(frozen=True, slots=True)
class Pake:
    """One step of a spoken code: the first from the new device, then the answer, then the proof."""

    data: bytes
    type: ClassVar[int] = 35
    size_max: ClassVar[int] = 1024

    def __post_init__(self) -> None:
        if not 0 < len(self.data) <= PAKE_SIZE_MAX:
            raise ValueError(f"a step has 1 to {PAKE_SIZE_MAX} bytes")

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"version": PROTOCOL_VERSION, "data": self.data}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module. Raises VersionError for another protocol version."""
        check_version(wire)
        return cls(get(wire, "data", bytes))


@dataclass(frozen=True, slots=True)
class Whispered:
    """The invitation, sealed with the key that both sides got from the spoken code."""

    sealed: bytes = field(repr=False)
    type: ClassVar[int] = 36
    size_max: ClassVar[int] = WHISPER_SIZE_MAX + 1024

    def __post_init__(self) -> None:
        if not 0 < len(self.sealed) <= WHISPER_SIZE_MAX:
            raise ValueError(f"a sealed invitation has 1 to {WHISPER_SIZE_MAX} bytes")

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"sealed": self.sealed}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        return cls(get(wire, "sealed", bytes))


@dataclass(frozen=True, slots=True)
class WhichFolder:
    """First on a join stream: which folder is the invitation of, with whose key we dialled?"""

    type: ClassVar[int] = 37
    size_max: ClassVar[int] = 1024

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"version": PROTOCOL_VERSION}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module. Raises VersionError for another protocol version."""
        check_version(wire)
        return cls()


@dataclass(frozen=True, slots=True)
class ThisFolder:
    """Answer to `WhichFolder`. A claim: whoever asked can tell whether it is true."""

    folder: FolderId
    type: ClassVar[int] = 38
    size_max: ClassVar[int] = 1024

    def to_wire(self) -> dict[str, Any]:
        """See the module."""
        return {"folder": self.folder}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """See the module."""
        return cls(FolderId(get(wire, "folder", bytes)))
