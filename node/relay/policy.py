"""Which folders a relay takes, and from whom."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from crdt.ids import DeviceId


class PolicyKind(enum.StrEnum):
    """As people write it."""

    OPEN = "open"
    TOKEN = "token"  # noqa: S105 - the word itself
    OWNERS = "owners"


@dataclass(frozen=True, slots=True)
class Policy:
    """`token` counts for TOKEN, `owners` for OWNERS."""

    kind: PolicyKind
    token: str = field(default="", repr=False)
    owners: frozenset[DeviceId] = frozenset()

    def may_knock(self, device: DeviceId) -> bool:
        """Whether a device that no roster names may connect, to bring a folder."""
        return self.kind is not PolicyKind.OWNERS or device in self.owners
