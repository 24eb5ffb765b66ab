"""Where a node listens, as people write it: `host:port` or `[v6]:port`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Self

from crdt.errors import CallerError


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a node listens: an IP address (`dial` takes a host name too) and a UDP port."""

    host: str
    port: int

    def __post_init__(self) -> None:
        if not self.host or not 0 <= self.port <= 0xFFFF:
            raise ValueError(f"{self.host!r} port {self.port} is no address")

    @classmethod
    def from_text(cls, text: str, *, default_port: int | None = None) -> Self:
        """Parse `host:port` or `[v6]:port`; without a port, `default_port` if given.

        Raises:
            CallerError: neither form.
        """
        host, colon, port_text = text.rpartition(":")
        if not colon or port_text.endswith("]") or _is_ipv6(text):
            host, port_text = text, "" if default_port is None else str(default_port)
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host and not _is_ipv6(host):
            host = ""
        if host and port_text.isascii() and port_text.isdigit() and int(port_text) <= 0xFFFF:
            return cls(host, int(port_text))
        raise CallerError(f"'{text}' is no address; write HOST:PORT or [IPv6]:PORT")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
