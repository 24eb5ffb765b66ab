"""Real nodes over a bad network: a proxy loses, repeats, reorders and spoils their datagrams."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from simulations.impairer import Impairer, Weather
from tests.support.processes import Device, free_port, on_loopback
from tests.support.trees import pause, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SIZE = 300_000  # bytes of the one large file
TIMEOUT_S = 90.0


@contextmanager
def behind(base: Path, weather: Weather) -> Iterator[tuple[Device, Device, Impairer]]:
    """Two members, of whom ben reaches anna only through the proxy, and anna ben not at all."""
    with on_loopback(base, "anna") as anna, on_loopback(base, "ben") as ben:
        anna.up()
        ben.join(anna.invite())
        anna.stop()
        ben.stop()
        port = free_port()  # other ports than those that the two remember of each other
        with Impairer(("127.0.0.1", port), weather) as impairer:
            anna.options = listen_at(port)
            ben.options = (*listen_at(free_port()), "--peer", f"127.0.0.1:{impairer.address[1]}")
            anna.up()
            ben.up()
            try:
                yield anna, ben, impairer
            finally:
                print(impairer.counts)
                anna.stop()
                ben.stop()
            assert impairer.counts.passed > SIZE // 2_000, "the proxy was not in the way"


def listen_at(port: int) -> tuple[str, ...]:
    return ("--no-lan", "--listen", f"127.0.0.1:{port}")


def work(anna: Device, ben: Device, chance: Random) -> None:
    """Both sides change something, and end up equal."""
    (anna.directory / "large.bin").write_bytes(chance.randbytes(SIZE))
    for number in range(100):
        path = anna.directory / f"directory {number % 5}" / f"{number}.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randint(0, 20_000)))
    wait_until_equal(anna.directory, ben.directory, timeout_s=TIMEOUT_S)
    (ben.directory / "directory 1").rename(ben.directory / "renamed")
    (ben.directory / "directory 2/2.bin").unlink()
    with (ben.directory / "large.bin").open("r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"edited by ben")
    (anna.directory / "directory 3/3.bin").write_bytes(b"edited by anna")
    wait_until_equal(anna.directory, ben.directory, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize(
    "weather",
    [
        Weather(loss=0.1, duplication=0.05, reordering=0.1, corruption=0.02, delay_s=0.002),
        pytest.param(Weather(loss=0.3), marks=pytest.mark.impaired),
        pytest.param(Weather(delay_s=0.05, reordering=0.2), marks=pytest.mark.impaired),
    ],
    ids=["all of it", "30 % lost", "slow and out of order"],
)
def test_a_bad_network_only_takes_longer(tmp_path: Path, weather: Weather) -> None:
    with behind(tmp_path, weather) as (anna, ben, _):
        work(anna, ben, Random(1))


@pytest.mark.impaired
def test_the_address_changes_in_the_middle(tmp_path: Path) -> None:
    with behind(tmp_path, Weather(delay_s=0.005)) as (anna, ben, impairer):
        for number in range(5):
            before = impairer.counts.passed
            (anna.directory / f"{number}.bin").write_bytes(Random(number).randbytes(20 * SIZE))
            deadline = time.monotonic() + TIMEOUT_S
            while impairer.counts.passed < before + 200:
                assert time.monotonic() < deadline, "nothing goes across"
                pause(0.001)
            impairer.rebind()
            wait_until_equal(anna.directory, ben.directory, timeout_s=TIMEOUT_S)
        assert impairer.counts.rebound == 5
