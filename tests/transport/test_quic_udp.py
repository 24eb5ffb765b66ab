"""The UDP socket: many datagrams a call, with and without the kernel's help."""

from __future__ import annotations

import pytest

from crdt.errors import WorldError
from transport.address import Address
from transport.quic_udp import UdpSocket, to_address

LOOPBACK = Address("127.0.0.1", 0)


@pytest.mark.parametrize("segmentation", [True, False])
async def test_many_datagrams_a_call(segmentation: bool) -> None:
    one, other = UdpSocket(LOOPBACK), UdpSocket(LOOPBACK)
    one._segmentation = one._segmentation and segmentation
    target = (other.address.host, other.address.port)
    sizes = [1452] * 40 + [700, 1452, 1452, 20, 1300, 1300]
    datagrams = [(bytes([index]) * size, target) for index, size in enumerate(sizes)]
    assert one.send(datagrams) == (len(datagrams), None)
    received: list[bytes] = []
    while len(received) < len(datagrams):
        await other.wait_readable()
        received += [data for data, _ in other.receive()]
    assert received == [data for data, _ in datagrams]
    one.close()
    other.close()


def test_a_name_is_no_place_to_listen() -> None:
    with pytest.raises(WorldError, match="no IP address"):
        UdpSocket(Address("localhost", 0))
    with pytest.raises(WorldError, match="cannot listen on 192"):
        UdpSocket(Address("192.0.2.1", 0))


def test_ipv4_inside_ipv6_is_shown_as_ipv4() -> None:
    assert to_address(("::ffff:10.0.0.1", 5, 0, 0)) == Address("10.0.0.1", 5)
    assert to_address(("fe80::1%eth0", 5, 0, 2)) == Address("fe80::1%eth0", 5)
