"""Fixed addresses: what a person may write, and names that change."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock

from crdt.errors import CallerError
from discovery.static import (
    RESOLVE_EVERY_S,
    RESOLVE_RETRY_S,
    is_numeric,
    parse_address,
    resolve,
    serve,
)
from transport.address import Address


@pytest.mark.parametrize(
    ("text", "host", "port", "numeric"),
    [
        ("nas.local:4000", "nas.local", 4000, False),
        ("10.0.0.1:1", "10.0.0.1", 1, True),
        ("[fe80::1%eth0]:4000", "fe80::1%eth0", 4000, True),
        ("[::1]:65535", "::1", 65535, True),
    ],
)
def test_addresses(text: str, host: str, port: int, numeric: bool) -> None:
    address = parse_address(text)
    assert address == Address(host, port)
    assert is_numeric(address) == numeric


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":4000",
        "host:",
        "host:0",
        "host:65536",
        "host:x",
        "::1:4000:",
        "ho st:1",
        "h:-1",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(CallerError, match=r"."):
        parse_address(text)


def test_a_default_port() -> None:
    assert parse_address("host", default_port=7) == Address("host", 7)


async def test_resolve() -> None:
    assert await resolve(Address("127.0.0.1", 4000)) == [Address("127.0.0.1", 4000)]
    assert Address("127.0.0.1", 4000) in await resolve(Address("localhost", 4000))
    assert await resolve(Address("x" * 70 + ".invalid", 4000)) == []


async def test_names_are_followed(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    one, two = Address("192.0.2.1", 4000), Address("192.0.2.2", 4000)
    answers = [[], [], [one], [one], [two], [], [two, one]]
    heard: list[tuple[float, Address]] = []
    start = trio.current_time()

    async def answer(name: Address) -> list[Address]:
        assert name.host == "nas"
        if not answers:
            nursery.cancel_scope.cancel()
            await trio.lowlevel.checkpoint()
        return answers.pop(0)

    def hear(address: Address) -> None:
        heard.append((trio.current_time() - start, address))

    fixed = Address("192.0.2.9", 1)
    async with trio.open_nursery() as nursery:
        await serve([Address("nas", 4000), fixed], hear, resolve=answer)
    found = 2 * RESOLVE_RETRY_S
    moved = found + 2 * RESOLVE_EVERY_S
    back = moved + RESOLVE_EVERY_S + RESOLVE_RETRY_S
    assert heard == [(0, fixed), (found, one), (moved, two), (back, one)]
    assert len(caplog.records) == 2, "once for each time that it stops resolving"
