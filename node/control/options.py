"""What `shoal up` and `shoal join` hand to `node.app`, and how the node speaks back meanwhile.

`node.app` has two entry points, both called on the main thread with no trio loop running:

    run_up(options: UpOptions, reporter: Reporter) -> None
    run_join(options: JoinOptions, reporter: Reporter) -> None

They return after a clean stop (SIGINT, SIGTERM or `shutdown`) and raise `ShoalError` otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from node.control.facade import Progress
from transport.address import Address


@dataclass(frozen=True, slots=True)
class UpOptions:
    """How to run the node.

    `home` and `directory` are absolute. `listen` is None when nobody asked for an address: then a
    port that is taken is no error, another one is chosen. `name` is this device's, for people.
    `no_merge` writes into the folder that nothing in it is to be merged. `passphrase` asks for that
    of the device's key, if it is under one.
    """

    home: Path
    directory: Path
    name: str
    listen: Address | None = None
    peers: tuple[Address, ...] = ()
    lan: bool = True
    no_merge: bool = False
    passphrase: Callable[[], str] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """As `UpOptions`, with the text of the invitation, not yet looked at."""

    invitation: str
    up: UpOptions


@dataclass(frozen=True, slots=True)
class Ready:
    """The node runs."""

    path: str
    device: str
    listening: str
    joined: bool = False


class Reporter(Protocol):
    """What the person in front of the running node sees. Cheap; call it from the loop."""

    def ready(self, ready: Ready) -> None:
        """The node serves its folder; once."""
        ...

    def progress(self, progress: Progress | None) -> None:
        """Long work goes on; None when there is none any more. As often as you like."""
        ...

    def warning(self, message: str) -> None:
        """Something needs a look; the node goes on."""
        ...
