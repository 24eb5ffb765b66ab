"""Two nodes on one loopback find each other; in two network namespaces too."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from crdt.ids import FolderId
from discovery.mdns import Mdns, _Wanted
from transport.address import Address

TODAY = 20_000
LOOPBACK = ["127.0.0.1"]


def folder() -> FolderId:
    return FolderId(os.urandom(32))  # parallel test runs on one machine hear each other


class Ear:
    """What a node was told."""

    def __init__(self) -> None:
        self.heard: set[tuple[Address, FolderId]] = set()
        self._event = trio.Event()

    def __call__(self, address: Address, folder: FolderId) -> None:
        self.heard.add((address, folder))
        self._event.set()

    async def wait_for(self, address: Address, folder: FolderId) -> None:
        with trio.fail_after(10):
            while (address, folder) not in self.heard:
                await self._event.wait()
                self._event = trio.Event()


@pytest.mark.slow
async def test_two_nodes_find_each_other_and_nobody_else() -> None:
    shared, other = folder(), folder()
    one = Mdns(4001, day=lambda: TODAY, interfaces=LOOPBACK)
    two = Mdns(4002, day=lambda: TODAY + 1, interfaces=LOOPBACK)
    three = Mdns(4003, day=lambda: TODAY, interfaces=LOOPBACK)
    one.set_folders({shared})
    two.set_folders({shared, other})
    ears = Ear(), Ear(), Ear()
    async with trio.open_nursery() as nursery:
        for node, ear in zip((one, two, three), ears, strict=True):
            nursery.start_soon(node.serve, ear)
        await ears[0].wait_for(Address("127.0.0.1", 4002), shared)
        await ears[1].wait_for(Address("127.0.0.1", 4001), shared)
        three.set_folders({other})  # one that it heard of before it knew the folder
        await ears[2].wait_for(Address("127.0.0.1", 4002), other)
        await ears[1].wait_for(Address("127.0.0.1", 4003), other)
        nursery.cancel_scope.cancel()
    assert ears[0].heard == {(Address("127.0.0.1", 4002), shared)}
    assert ears[2].heard == {(Address("127.0.0.1", 4002), other)}


class Alarm(logging.Handler):
    """An event that a log line from any thread sets."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.event = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._token.run_sync_soon(self.event.set)


@pytest.mark.parametrize("interfaces", [[], ["192.0.2.77"]])
async def test_no_usable_interface_is_a_warning(interfaces: list[str]) -> None:
    alarm, logger = Alarm(), logging.getLogger("shoal.discovery")
    logger.addHandler(alarm)
    try:
        mdns = Mdns(4001, day=lambda: TODAY, interfaces=interfaces)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mdns.serve, Ear())
            with trio.fail_after(10):
                await alarm.event.wait()
            nursery.cancel_scope.cancel()
    finally:
        logger.removeHandler(alarm)
    assert "cannot find peers on the LAN" in alarm.lines[0]


def test_what_is_announced_fits_a_record() -> None:
    properties = _Wanted(TODAY, frozenset(folder() for _ in range(100))).properties()
    assert set(properties) == {"v", "t0", "t1", "t2", "t3"}
    for key, value in properties.items():
        assert isinstance(value, str)
        assert len(key) + 1 + len(value) <= 255


# --- two machines ---------------------------------------------------------------------------

_CHILD = """
import sys, trio
from crdt.ids import FolderId
from discovery.mdns import Mdns

async def main():
    mdns = Mdns(int(sys.argv[1]), day=lambda: 20000)
    mdns.set_folders({FolderId(b"f" * 32)})
    start = trio.current_time()
    def found(address, folder):
        print(address, f"{trio.current_time() - start:.3f}", flush=True)
    print("ready", flush=True)
    with trio.move_on_after(float(sys.argv[2])):
        await mdns.serve(found)

trio.run(main)
"""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces with one cable between them, 10.213.7.1 and 10.213.7.2."""
    tag = uuid.uuid4().hex[:6]
    one, two = f"shoal-{tag}-1", f"shoal-{tag}-2"
    try:
        run("ip", "netns", "add", one)
        run("ip", "netns", "add", two)
        cable = ("type", "veth", "peer", "name", "lan0", "netns", two)
        run("ip", "-n", one, "link", "add", "lan0", *cable)
        for number, name in enumerate((one, two), start=1):
            run("ip", "-n", name, "address", "add", f"10.213.7.{number}/24", "dev", "lan0")
            run("ip", "-n", name, "link", "set", "lan0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield one, two
    finally:
        for name in (one, two):
            subprocess.run(("ip", "netns", "delete", name), check=False, capture_output=True)


@pytest.mark.slow
@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")
def test_across_two_network_namespaces(namespaces: tuple[str, str]) -> None:
    root = Path(__file__).parents[2]
    children: list[subprocess.Popen[str]] = []
    try:
        for number, name in enumerate(namespaces, start=1):
            inside = ("ip", "netns", "exec", name, sys.executable, "-c", _CHILD)
            children.append(
                subprocess.Popen(
                    (*inside, str(5000 + number), "4"), cwd=root, stdout=subprocess.PIPE, text=True
                )
            )
            assert children[-1].stdout is not None
            assert children[-1].stdout.readline() == "ready\n"
        for child, other in zip(children, ("10.213.7.2:5002", "10.213.7.1:5001"), strict=True):
            assert child.stdout is not None
            address, seconds = child.stdout.readline().split()
            print(f"found {address} after {seconds} s")
            assert address == other
            assert float(seconds) < 2
    finally:
        for child in children:
            child.terminate()
            child.communicate()
