"""Hosts as network namespaces on one bridge, all made by the test and removed with it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

_numbers = itertools.count()


def available() -> str | None:
    """Why namespaces cannot be used here, None if they can."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    if shutil.which("ip") is None:
        return "needs `ip` (Debian: apt-get install iproute2)"
    return None


@dataclass(frozen=True)
class Host:
    """One namespace with one address on the bridge."""

    name: str
    address: str

    def wrap(self, command: list[str]) -> list[str]:
        """The command that runs `command` on this host."""
        return ["ip", "netns", "exec", self.name, *command]


@dataclass(frozen=True)
class Lan:
    """A bridge in a namespace of its own, and the hosts on it."""

    switch: str
    bridge: str
    hosts: list[Host]

    def port(self, host: int) -> str:
        """The switch's end of a host's cable, where a sniffer sees all that host's packets."""
        return f"p{host}"

    def set_link(self, host: int, *, up: bool) -> None:
        """Plug a host's cable in or out, at the switch."""
        _ip("-n", self.switch, "link", "set", self.port(host), "up" if up else "down")


@contextlib.contextmanager
def lan(hosts: int) -> Iterator[Lan]:
    """A bridge with `hosts` hosts, 10.77.x.1 and up, MTU 1500."""
    tag = f"sh{os.getpid() % 100_000:x}{next(_numbers)}"
    switch = f"{tag}sw"
    subnet = f"10.77.{os.getpid() % 250}"
    members = [Host(f"{tag}h{i}", f"{subnet}.{i + 1}") for i in range(hosts)]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "set", "lo", "up")
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for number, host in enumerate(members):
            _ip("netns", "add", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
            _ip("-n", switch, "link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0",
                "netns", host.name)  # fmt: skip
            _ip("-n", switch, "link", "set", f"p{number}", "master", "br0", "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")
            _ip("-n", host.name, "route", "add", "224.0.0.0/4", "dev", "eth0")
        yield Lan(switch, "br0", members)
    finally:
        for name in [*(host.name for host in members), switch]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
