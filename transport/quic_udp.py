"""A non-blocking UDP socket that moves many datagrams per system call.

On Linux it uses generic segmentation and receive offload (UDP_SEGMENT, UDP_GRO): one call then
moves up to 64 datagrams. Where the kernel or the device refuses, it falls back to one by one.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import trio

from crdt.errors import WorldError
from transport.address import Address

Sockaddr: TypeAlias = Any  # what the socket module takes: (host, port) or IPv6's four parts
Datagram: TypeAlias = tuple[bytes, Sockaddr]

RECEIVE_BATCH: Final = 64  # datagrams a wake-up (2 ms of work), then acknowledge and look around
SEGMENTS_MAX: Final = 64  # datagrams a call: the kernel's UDP_MAX_SEGMENTS of older versions
SEND_SIZE_MAX: Final = 64_000  # bytes a call: below the largest UDP payload
BUFFER_SIZE: Final = 4 * 2**20  # bytes asked of the kernel for either direction

_UDP_SEGMENT: Final = 103  # linux/udp.h; the socket module of Python 3.11 lacks both
_UDP_GRO: Final = 104
_CONTROL_SIZE: Final = 64  # bytes; one UDP_GRO message takes 20
_NO_OFFLOAD: Final = frozenset({errno.EIO, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT})


class UdpSocket:
    """Bound to one address for its life; `address` says which."""

    def __init__(self, listen: Address) -> None:
        """Bind. A port of 0 means any; "::" means IPv4 too.

        Raises:
            WorldError: the port is in use, or the address is not ours.
        """
        try:
            host = ipaddress.ip_address(listen.host)
        except ValueError:
            raise WorldError(
                f"cannot listen on {listen}: '{listen.host}' is no IP address of this device"
            ) from None
        self._family = socket.AF_INET6 if host.version == 6 else socket.AF_INET
        self._socket = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            self._configure(dual=host.version == 6 and int(host) == 0)
            self._socket.bind((listen.host, listen.port))
        except OSError as error:
            self._socket.close()
            raise WorldError(_bind_failure(listen, error)) from error
        self._segmentation = sys.platform == "linux"
        self._buffer = bytearray(65_536)
        self.address = to_address(self._socket.getsockname())

    def _configure(self, *, dual: bool) -> None:
        self._socket.setblocking(False)
        if self._family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            with contextlib.suppress(OSError):  # the kernel may give less, macOS refuses
                self._socket.setsockopt(socket.SOL_SOCKET, option, BUFFER_SIZE)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)

    async def wait_readable(self) -> None:
        """Wait until `receive` has something."""
        await trio.lowlevel.wait_readable(self._socket)

    async def wait_writable(self) -> None:
        """Wait until `send` can go on."""
        await trio.lowlevel.wait_writable(self._socket)

    async def resolve(self, address: Address) -> list[Sockaddr]:
        """Where `send` reaches `address`, best first.

        Raises:
            OSError: the name is unknown, or has no address of this socket's family.
        """
        flags = 0
        if self._family == socket.AF_INET6:
            flags = socket.AI_V4MAPPED | socket.AI_ALL
        found = await trio.socket.getaddrinfo(
            address.host, address.port, family=self._family, type=socket.SOCK_DGRAM, flags=flags
        )
        return list(dict.fromkeys(entry[4] for entry in found))

    def receive(self) -> list[Datagram]:
        """What has arrived, without waiting."""
        received: list[Datagram] = []
        for _ in range(RECEIVE_BATCH):
            if len(received) >= RECEIVE_BATCH:
                break
            try:
                size, control, _flags, sender = self._socket.recvmsg_into(
                    [self._buffer], _CONTROL_SIZE
                )
            except BlockingIOError:
                break
            except OSError:
                continue  # the report of an earlier datagram that could not be delivered
            step = _segment_size(control) or size
            data = bytes(memoryview(self._buffer)[:size])
            if step >= size:
                received.append((data, sender))
            else:
                received += [(data[i : i + step], sender) for i in range(0, size, step)]
        return received

    def send(self, datagrams: Sequence[Datagram]) -> tuple[int, OSError | None]:
        """Send without waiting.

        Returns:
            How many were sent (or dropped by the network, which QUIC repairs), and the last
            error. Fewer than given means: wait until writable, then send the rest.
        """
        sent, problem = 0, None
        while sent < len(datagrams):
            count = self._run_length(datagrams, sent) if self._segmentation else 1
            try:
                self._send_run(datagrams[sent : sent + count])
            except BlockingIOError:
                break
            except OSError as error:
                if count > 1:
                    # One by one from here on if offload is the matter; else at least this once.
                    self._segmentation = error.errno not in _NO_OFFLOAD
                    count, problem = self._send_singly(datagrams[sent : sent + count])
                    if count == 0:
                        break
                else:
                    problem = error
            sent += count
        return sent, problem

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def _run_length(self, datagrams: Sequence[Datagram], start: int) -> int:
        """How many from `start` on one call can send: same receiver, same size (the last may be
        shorter).
        """
        first, receiver = datagrams[start]
        size, total, count = len(first), len(first), 1
        for data, other in datagrams[start + 1 : start + SEGMENTS_MAX]:
            total += len(data)
            if other != receiver or len(data) > size or total > SEND_SIZE_MAX:
                break
            count += 1
            if len(data) < size:
                break
        return count

    def _send_run(self, run: Sequence[Datagram]) -> None:
        data, receiver = run[0]
        if len(run) == 1:
            self._socket.sendto(data, receiver)
            return
        control = [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", len(data)))]
        self._socket.sendmsg([data for data, _ in run], control, 0, receiver)

    def _send_singly(self, run: Sequence[Datagram]) -> tuple[int, OSError | None]:
        problem = None
        for index, (data, receiver) in enumerate(run):
            try:
                self._socket.sendto(data, receiver)
            except BlockingIOError:
                return index, problem
            except OSError as error:
                problem = error
        return len(run), problem


def to_address(sockaddr: Sockaddr) -> Address:
    """The Address of a socket address; IPv4 inside IPv6 is shown as IPv4."""
    host, port = sockaddr[0], sockaddr[1]
    mapped = None
    if ":" in host:
        mapped = ipaddress.IPv6Address(host.partition("%")[0]).ipv4_mapped
    return Address(str(mapped) if mapped else host, port)


def _segment_size(control: Sequence[tuple[int, int, bytes]]) -> int:
    for level, kind, data in control:
        if level == socket.IPPROTO_UDP and kind == _UDP_GRO:
            return int.from_bytes(data[:4], sys.byteorder)
    return 0


def _bind_failure(listen: Address, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"cannot listen on {listen}: another program uses this port. "
            "Choose another one, or stop that program"
        )
    return f"cannot listen on {listen}: {os.strerror(error.errno or 0)}"
