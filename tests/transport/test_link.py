"""Addresses as people write them."""

from __future__ import annotations

import pytest

from crdt.errors import CallerError
from transport.address import Address
from transport.link import CloseCode, Closed


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1:22000", "10.0.0.1", 22000),
        ("nas.local:1", "nas.local", 1),
        ("[fe80::1%eth0]:7", "fe80::1%eth0", 7),
        ("[::]:0", "::", 0),
    ],
)
def test_text(text: str, host: str, port: int) -> None:
    address = Address.from_text(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text


@pytest.mark.parametrize("text", ["nas.local", "::1", "[::1]"])
def test_a_default_port(text: str) -> None:
    assert Address.from_text(text, default_port=5).port == 5
    assert Address.from_text(text, default_port=5).host == text.strip("[]")
    with pytest.raises(CallerError):
        Address.from_text(text)


@pytest.mark.parametrize("text", ["", ":5", "a:b", "a:70000", "a:-1", "a:b:5", "[]:5", "a:٣"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(CallerError, match="is no address"):
        Address.from_text(text)


def test_how_it_ended_in_words() -> None:
    assert str(Closed(CloseCode.DUPLICATE, "twice", by_peer=True)) == (
        "peer closed: DUPLICATE (twice)"
    )
    assert str(Closed(None, "", by_peer=False)) == "connection lost"
