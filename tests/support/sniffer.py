"""Every packet that crosses a bridge, seen by a raw socket in the switch's namespace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType

_PROGRAM = """
import socket, struct, sys
out = open(sys.argv[1], "wb", buffering=1 << 20)
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
raw.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE
raw.bind((sys.argv[2], 0))
raw.settimeout(0.2)
print("listening", flush=True)
import select
while True:
    ready, _, _ = select.select([raw, sys.stdin], [], [])
    if raw in ready:
        packet = raw.recv(65536)
        out.write(struct.pack(">I", len(packet)) + packet)
    elif sys.stdin in ready:
        break
out.close()
"""


class Sniffer:
    """Records while the block runs; look at `packets` and `size` afterwards."""

    def __init__(self, switch: str, interface: str, file: Path) -> None:
        self._file = file
        self._command = ["ip", "netns", "exec", switch, sys.executable, "-c", _PROGRAM,
                         str(file), interface]  # fmt: skip

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
        self._process.communicate("stop\n", timeout=30)

    @property
    def data(self) -> bytes:
        """All packets, one after the other."""
        return self._file.read_bytes()

    @property
    def size(self) -> int:
        """Bytes on the wire, link headers included."""
        return len(self.data) - 4 * self.packets

    @property
    def packets(self) -> int:
        """How many packets there were."""
        data, count, at = self.data, 0, 0
        while at < len(data):
            at += 4 + int.from_bytes(data[at : at + 4])
            count += 1
        return count
