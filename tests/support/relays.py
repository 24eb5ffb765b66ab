"""Relays as real processes, in the manner of `tests.support.processes`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from node.control.client import ControlClient
from tests.support.netns import Host
from tests.support.processes import Device, free_port


class RelayProcess(Device):
    """A relay's home, and at most one running process."""

    def __init__(
        self,
        base: Path,
        name: str,
        host: Host | None = None,
        *,
        options: tuple[str, ...] = (),
        policy: str = "open",
    ) -> None:
        super().__init__(base, name, host, options=options)
        self.policy = policy
        self.host = "127.0.0.1" if host is None else host.address
        self.port = free_port()

    @property
    def address(self) -> str:
        """HOST:PORT for `shoal relay add`."""
        return f"{self.host}:{self.port}"

    def up(self, *options: str) -> None:
        """`shoal relay`, and wait for the line that says it is ready."""
        listen = ("--listen", self.address, "--policy", self.policy)
        self.start("relay", "--verbose", *listen, *self.options, *options)

    @property
    def token(self) -> str:
        """The token in the ready line of the first start."""
        return self.ready_line.rpartition("token ")[2]

    def stats(self) -> dict[str, Any]:
        """What `shoal relay stats --json` says."""
        with ControlClient(self.home) as client:
            return client.relay_stats()

    def counter(self, name: str) -> int:
        """One of its counters."""
        return int(self.stats()["counters"][name])

    def only_folder(self) -> dict[str, Any]:
        """Its only folder in `stats`."""
        (folder,) = self.stats()["folders"]
        assert isinstance(folder, dict)
        return folder


def add(device: Device, relay: RelayProcess, token: str = "") -> dict[str, Any]:
    """`shoal relay add` on a running device."""
    arguments = ["relay", "add", relay.address, str(device.directory), "--json"]
    if token:
        arguments += ["--token", token]
    answer: dict[str, Any] = json.loads(device.run(*arguments).stdout)
    return answer
