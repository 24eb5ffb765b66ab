"""A user-space UDP proxy that treats the datagrams of real nodes as bad networks do.

    impairer.address ──▶ upstream, and what comes back goes to whoever sent last

Rates are chances a datagram, in either direction. Which ones are hit follows the seed, but real
nodes do not send the same datagrams twice, so a run cannot be replayed; `simulations.world` can.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

DATAGRAM_SIZE_MAX: Final = 65_535
POLL_S: Final = 0.05

Sockaddr = tuple[str, int]


@dataclass
class Weather:
    """What happens to datagrams; may be changed while the proxy runs."""

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0  # held back for `delay_s` more
    corruption: float = 0.0  # one byte changed
    delay_s: float = 0.0
    size_max: int = DATAGRAM_SIZE_MAX  # bytes; larger datagrams vanish without a word


@dataclass
class Counts:
    """What was done so far."""

    passed: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0
    too_large: int = 0
    rebound: int = 0


@dataclass(order=True)
class _Held:
    due: float
    order: int
    data: bytes = field(compare=False)
    to_upstream: bool = field(compare=False)


class Impairer:
    """Runs in a thread of its own between `__enter__` and `__exit__`."""

    def __init__(self, upstream: Sockaddr, weather: Weather, seed: int = 1) -> None:
        self.weather = weather
        self.counts = Counts()
        self._upstream = upstream
        self._random = random.Random(seed)
        self._front = _bound()
        self._back = _bound()
        self._client: Sockaddr | None = None
        self._held: list[_Held] = []
        self._order = 0
        self._stop = threading.Event()
        self._rebind = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def address(self) -> Sockaddr:
        """Where to send what is meant for upstream."""
        host, port = self._front.getsockname()
        return host, port

    def rebind(self) -> None:
        """From now on upstream sees another address, as when a NAT forgets, or Wi-Fi changes."""
        self._rebind.set()

    def __enter__(self) -> Impairer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._front.close()
        self._back.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._rebind.is_set():
                self._rebind.clear()
                self._back.close()
                self._back = _bound()
                self.counts.rebound += 1
            busy = self._take(self._front, to_upstream=True)
            busy = self._take(self._back, to_upstream=False) or busy
            self._release(time.monotonic())
            if not busy:
                time.sleep(0.0005)

    def _take(self, source: socket.socket, *, to_upstream: bool) -> bool:
        try:
            data, sender = source.recvfrom(DATAGRAM_SIZE_MAX)
        except BlockingIOError:
            return False
        except OSError:
            return False  # the report of a datagram that nobody was there to receive
        if to_upstream:
            self._client = sender
        self._treat(data, to_upstream=to_upstream)
        return True

    def _treat(self, data: bytes, *, to_upstream: bool) -> None:
        weather, chance, counts = self.weather, self._random.random, self.counts
        if len(data) > weather.size_max:
            counts.too_large += 1
            return
        if chance() < weather.loss:
            counts.lost += 1
            return
        if chance() < weather.corruption:
            counts.corrupted += 1
            at = self._random.randrange(len(data))
            data = (
                data[:at] + bytes([data[at] ^ (1 + self._random.randrange(255))]) + data[at + 1 :]
            )
        copies = 1
        if chance() < weather.duplication:
            counts.duplicated += 1
            copies = 2
        delay = weather.delay_s
        if chance() < weather.reordering:
            counts.reordered += 1
            delay += weather.delay_s or 0.01
        for _ in range(copies):
            self._order += 1
            self._held.append(_Held(time.monotonic() + delay, self._order, data, to_upstream))

    def _release(self, now: float) -> None:
        due = sorted(held for held in self._held if held.due <= now)
        if not due:
            return
        self._held = [held for held in self._held if held.due > now]
        for held in due:
            try:
                if held.to_upstream:
                    self._back.sendto(held.data, self._upstream)
                elif self._client is not None:
                    self._front.sendto(held.data, self._client)
                self.counts.passed += 1
            except OSError:
                self.counts.lost += 1  # as a full queue would


def _bound() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        made.setsockopt(socket.SOL_SOCKET, option, 4 * 2**20)
    made.bind(("127.0.0.1", 0))
    made.setblocking(False)
    return made
