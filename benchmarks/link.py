"""How many bytes a second one stream of a QuicLink carries between two processes on loopback.

python benchmarks/link.py [MEGABYTES]
"""

from __future__ import annotations

import os
import resource
import sys
import time

import trio

from crdt.ids import DeviceId
from transport.address import Address
from transport.identity import Identity
from transport.link import CloseCode, Connection
from transport.quic import QuicLink

LOOPBACK = Address("127.0.0.1", 0)


def let_in(_peer: DeviceId) -> CloseCode | None:
    return None


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def receive(report: int) -> None:
    link = QuicLink(Identity.from_seed(b"R" * 32), LOOPBACK)
    start_s = cpu_s()

    async def handle(connection: Connection) -> None:
        stream = await connection.accept_stream()
        size = 0
        while data := await stream.receive_some():
            size += len(data)
        await stream.send_all(f"{size} {cpu_s() - start_s}".encode())
        await stream.send_eof()
        await connection.wait_closed()
        await link.aclose()

    async with trio.open_nursery() as nursery:
        await nursery.start(link.serve, let_in, handle)
        assert link.address is not None
        os.write(report, str(link.address.port).encode())


async def send(port: int, size: int) -> None:
    link = QuicLink(Identity.from_seed(b"S" * 32), LOOPBACK)

    async def handle(connection: Connection) -> None:
        await connection.wait_closed()

    async with trio.open_nursery() as nursery:
        await nursery.start(link.serve, let_in, handle)
        connection = await link.dial(Address("127.0.0.1", port), authorize=let_in)
        stream = await connection.open_stream()
        piece = os.urandom(2**20)
        start_s, start_cpu_s = time.perf_counter(), cpu_s()
        for _ in range(size // len(piece)):
            await stream.send_all(piece)
        await stream.send_eof()
        received, receiver_s = (await stream.receive_some()).split()
        took_s = time.perf_counter() - start_s
        assert int(received) == size
        print(
            f"{size / took_s / 1e6:.1f} MB/s; CPU: sender {cpu_s() - start_cpu_s:.2f} s, "
            f"receiver {float(receiver_s):.2f} s of {took_s:.2f} s"
        )
        await connection.close(CloseCode.OK)
        await link.aclose()


def main() -> None:
    size = int(sys.argv[1] if len(sys.argv) > 1 else "100") * 2**20
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        trio.run(receive, writer)
        os._exit(0)
    trio.run(send, int(os.read(reader, 10)), size)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
