"""Fixed addresses: parse what a person wrote, and keep host names resolved.

One coroutine, `serve`, in somebody's nursery. A name that does not resolve is logged once and tried
again; nothing is raised for it, since the network may only come later. Addresses never go away
while we run: a name that stops resolving may be a name server's bad day.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from crdt.errors import CallerError
from transport.address import Address

logger = logging.getLogger("shoal.discovery")

RESOLVE_EVERY_S: Final = 300.0  # dynamic DNS changes within minutes
RESOLVE_RETRY_S: Final = 10.0  # while a name does not resolve
RESOLVE_TIMEOUT_S: Final = 20.0
ADDRESSES_PER_NAME_MAX: Final = 8

Resolve = Callable[[Address], Awaitable[list[Address]]]


def parse_address(text: str, *, default_port: int | None = None) -> Address:
    """`HOST:PORT` or `[IPv6]:PORT`, as a place to dial.

    Raises:
        CallerError: neither form, or a port that nobody can listen on.
    """
    address = Address.from_text(text, default_port=default_port)
    if not address.port:
        raise CallerError(f"'{text}' names port 0, where nobody can listen; give a real port")
    if any(character.isspace() or not character.isprintable() for character in address.host):
        raise CallerError(f"'{address.host}' is no host name")
    return address


def is_numeric(address: Address) -> bool:
    """True when the host is an IP address, False when it is a name."""
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        return False
    return True


async def resolve(address: Address) -> list[Address]:
    """The IP addresses behind a name; none when it does not resolve now."""
    try:
        with trio.fail_after(RESOLVE_TIMEOUT_S):
            found = await trio.socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_DGRAM
            )
    except (OSError, UnicodeError, trio.TooSlowError):
        return []
    hosts = dict.fromkeys(str(place[0]) for *_, place in found)
    return [Address(host, address.port) for host in hosts][:ADDRESSES_PER_NAME_MAX]


async def serve(
    addresses: Sequence[Address],
    on_candidate: Callable[[Address], None],
    *,
    resolve: Resolve = resolve,
) -> None:
    """Report every IP address behind `addresses`, at once and whenever a name's changed.

    Args:
        addresses: IP addresses are reported once, names are looked up again and again.
        on_candidate: Called with each address that is new.
        resolve: Looks a name up.
    """
    for address in addresses:
        if is_numeric(address):
            on_candidate(address)
    async with trio.open_nursery() as nursery:
        for address in addresses:
            if not is_numeric(address):
                nursery.start_soon(_follow, address, on_candidate, resolve)


async def _follow(name: Address, on_candidate: Callable[[Address], None], resolve: Resolve) -> None:
    reported: set[Address] = set()
    warned = False
    while True:
        found = await resolve(name)
        for address in found:
            if address not in reported:
                on_candidate(address)
        reported = set(found) or reported
        if not found and not warned:
            logger.warning("the name %s does not resolve; it is tried again", name.host)
        warned = not found
        await trio.sleep(RESOLVE_EVERY_S if found else RESOLVE_RETRY_S)
