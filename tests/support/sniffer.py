"""Every packet that crosses a bridge, seen by a raw socket in the switch's namespace.

Listen on a port of the bridge (`Lan.port`): the bridge device itself does not see what it forwards.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_PROGRAM = """
import select, socket, struct, sys
out = open(sys.argv[1], "wb", buffering=1 << 20)
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
raw.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE
raw.bind((sys.argv[2], 0))
raw.setblocking(False)
print("listening", flush=True)
while True:
    ready, _, _ = select.select([raw, sys.stdin], [], [])
    if raw in ready:
        try:
            while True:
                packet = raw.recv(1 << 17)
                out.write(struct.pack(">I", len(packet)) + packet)
        except BlockingIOError:
            pass
    elif sys.stdin in ready:
        break
out.close()
_, dropped = struct.unpack("II", raw.getsockopt(263, 6, 8))  # SOL_PACKET, PACKET_STATISTICS
print(dropped, flush=True)
"""


class Sniffer:
    """Records while the block runs; look at `packets`, `size` and `data` afterwards."""

    def __init__(self, switch: str, interface: str, file: Path) -> None:
        self._file = file
        self._command = ["ip", "netns", "exec", switch, sys.executable, "-c", _PROGRAM,
                         str(file), interface]  # fmt: skip
        self.dropped = 0

    def __enter__(self) -> Sniffer:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == "listening"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        out, _ = self._process.communicate("stop\n", timeout=60)
        self.dropped = int(out)

    @property
    def data(self) -> bytes:
        """All packets, one after the other, each behind its length in 4 bytes."""
        return self._file.read_bytes()

    @property
    def packets(self) -> list[bytes]:
        """Every packet, from its Ethernet header on."""
        return list(self._split(self.data))

    @property
    def size(self) -> int:
        """Bytes on the wire, link headers included."""
        return sum(len(packet) for packet in self._split(self.data))

    @staticmethod
    def _split(data: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 4])
            yield data[at + 4 : at + 4 + size]
            at += 4 + size
