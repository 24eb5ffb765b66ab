"""Anna and Ben are never awake at the same time; a relay always is; Cleo joins while both sleep.

Real nodes, each in a network namespace of its own, in turns: a source tree, a large file, edits,
renames, deletions and conflicts go both ways through the relay and end equal. A thousand names and
contents are among them that are nowhere by chance: nothing that the relay stored, logged or had in
its memory holds one.

`make test` tells it with a part of the source tree and a smaller file, `make test-relay-story`
with all of it and 300 MB.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.support import netns
from tests.support.canaries import COUNT, Canaries, dump_memory
from tests.support.netns import lan
from tests.support.people_at_work import (
    check_conflicts,
    conflicts_by_anna,
    conflicts_by_ben,
    copy_standard_library,
    patch,
    replace,
    write_random,
)
from tests.support.processes import Device
from tests.support.relays import RelayProcess, add
from tests.support.trees import Tree, contents, snapshot, wait_for, wait_until_equal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.netns,
    pytest.mark.skipif(netns.available() is not None, reason=netns.available() or ""),
    pytest.mark.timeout(280),
]

STEP_TIMEOUT_S = 300.0  # the large file, on a machine that runs other tests beside
NOT_IN_SHORT = (
    "test", "idlelib", "lib2to3", "encodings", "ensurepip", "config-*", "distutils", "lib-dynload",
    "tkinter", "unittest",
)  # fmt: skip


@pytest.mark.parametrize(
    ("large_size", "without"),
    [
        pytest.param(8_000_000, NOT_IN_SHORT, id="short"),
        pytest.param(
            300_000_000, (), id="long", marks=[pytest.mark.story, pytest.mark.timeout(1_500)]
        ),
    ],
)
def test_devices_that_are_never_awake_together(
    tmp_path: Path, large_size: int, without: tuple[str, ...]
) -> None:
    with (
        lan(4) as net,
        RelayProcess(tmp_path, "relay", net.hosts[0], policy="token") as relay,
        Device(tmp_path, "anna", net.hosts[1]) as anna,
        Device(tmp_path, "ben", net.hosts[2]) as ben,
        Device(tmp_path, "cleo", net.hosts[3]) as cleo,
    ):
        relay.up()
        story = Story(tmp_path, relay, anna, ben, cleo)
        story.anna_fills_the_folder(large_size, without)
        story.ben_joins_and_works()
        story.anna_had_worked_too()
        story.ben_sees_it()
        story.cleo_joins_while_both_sleep()
        story.all_end_equal()
        story.the_relay_knows_nothing()


class Story:
    """The steps, in order. Each ends with one device that has everything, asleep."""

    def __init__(
        self, base: Path, relay: RelayProcess, anna: Device, ben: Device, cleo: Device
    ) -> None:
        self.base, self.relay = base, relay
        self.anna, self.ben, self.cleo = anna, ben, cleo
        self.a, self.b, self.c = anna.directory, ben.directory, cleo.directory
        self.dumps: list[Path] = []
        self._began = time.monotonic()

    def anna_fills_the_folder(self, large_size: int, without: tuple[str, ...]) -> None:
        copy_standard_library(self.a / "python", without=without)
        self.canaries = Canaries.sow(self.a / "canaries")
        write_random(self.a / "large.bin", large_size)
        self.anna.up()
        add(self.anna, self.relay, self.relay.token)
        self.for_ben, self.for_cleo = self.anna.invite(), self.anna.invite()
        self.sleep("the first transfer", self.anna)

    def ben_joins_and_works(self) -> None:
        """Edits, renames, deletions; and his half of the table of conflicts."""
        b = self.b
        self.alone(self.ben)
        self.ben.join(self.for_ben)
        self.equal(self.a, self.b)
        with (b / "python/ast.py").open("a") as file:
            file.write("# appended by ben\n")
        patch(b / "large.bin", 15_000_000, b"four")
        replace(b / "python/cmd.py", "as editors save\n")
        (b / "python/bisect.py").chmod(0o755)
        (b / "python/calendar.py").rename(b / "python/kalender.py")
        (b / "python/email").rename(b / "python/json/email")
        (b / "python/cgi.py").unlink()
        shutil.rmtree(b / "python/curses")
        (b / "new.txt").write_text("new, by ben\n")
        conflicts_by_ben(b / "python")
        self.sleep("a join and ben's work", self.ben)

    def anna_had_worked_too(self) -> None:
        """Her half of the conflicts, on a tree that is older than what ben did."""
        before = snapshot(self.b)
        conflicts_by_anna(self.a / "python")
        (self.a / "python/code.py").rename(self.a / "code.py")
        self.alone(self.anna)
        self.anna.up()
        wait_until_equal(self.a, timeout_s=STEP_TIMEOUT_S, expected=lambda tree: "new.txt" in tree)
        wait_for(lambda: self.has_everything(self.anna), timeout_s=STEP_TIMEOUT_S)
        self.sleep("anna's work", self.anna)
        tree = snapshot(self.a)
        check_conflicts(tree, self.a)
        assert tree != before

    def ben_sees_it(self) -> None:
        """Both have the same now; then he goes on."""
        self.alone(self.ben)
        self.ben.up()
        tree = self.equal(self.a, self.b)
        assert "code.py" in tree
        assert "python/json/email/message.py" in tree
        (self.b / "large.bin").rename(self.b / "gross.bin")
        shutil.rmtree(self.b / "python/xml")
        self.sleep("ben again", self.ben)

    def cleo_joins_while_both_sleep(self) -> None:
        self.alone(self.cleo)
        self.cleo.join(self.for_cleo)
        self.equal(self.b, self.c)
        self.look_into_the_relay()  # just after it has served everything
        replace(self.c / "by-cleo.txt", "while both slept\n")
        (self.c / "python/asyncio").rename(self.c / "python/asynchronous")
        self.sleep("cleo", self.cleo)

    def all_end_equal(self) -> None:
        for device in (self.anna, self.ben):
            self.alone(device)
            device.up()
            self.equal(self.c, device.directory)
            wait_for(lambda d=device: self.has_everything(d))  # type: ignore[misc]
            self.sleep(device.name, device)
        tree = wait_until_equal(self.a, self.b, self.c)
        check_conflicts(tree, self.a)
        assert {"gross.bin", "by-cleo.txt", "python/asynchronous/tasks.py"} <= tree.keys()
        assert not {"python/cgi.py", "python/xml", "python/curses", "large.bin"} & tree.keys()
        assert b"while both slept\n" in contents(self.a)

    def the_relay_knows_nothing(self) -> None:
        """No canary in what it keeps, logs, or holds in its memory; and the search does find."""
        self.look_into_the_relay()
        counters = self.relay.stats()["counters"]
        assert counters["blocks_stored_total"] > COUNT // 10
        assert counters["blocks_served_total"] > COUNT // 10
        assert self.relay.stop() == 0
        kept = [self.relay.home, self.relay.log, *self.dumps]
        assert self.canaries.found_in(kept, self.base) == set()
        everything = {*self.canaries.names, *self.canaries.contents}
        assert len(self.canaries.contents) == COUNT
        assert self.canaries.found_in([self.c], self.base) == everything

    # --- how a step goes

    def alone(self, device: Device) -> None:
        """Nobody else is awake."""
        others = {self.anna, self.ben, self.cleo} - {device}
        assert not any(other.running for other in others)
        assert self.relay.running

    def has_everything(self, device: Device) -> bool:
        """It took over all that the relay has."""
        folder = device.folder()
        return (folder["state"], folder["needs"]) == ("in sync", {"files": 0, "bytes": 0})

    def equal(self, one: Path, other: Path) -> Tree:
        try:
            return wait_until_equal(one, other, timeout_s=STEP_TIMEOUT_S)
        except AssertionError as error:
            running = [d for d in (self.anna, self.ben, self.cleo) if d.running]
            tails = "\n--- ".join(device.tail() for device in (*running, self.relay))
            raise AssertionError(f"{error}\n--- {tails}") from None

    def sleep(self, what: str, device: Device) -> None:
        """The relay has all of it; the device goes to sleep."""
        device.wait(devices=2, timeout_s=STEP_TIMEOUT_S)
        assert device.stop() == 0
        print(f"{time.monotonic() - self._began:6.1f} s: {what}")

    def look_into_the_relay(self) -> None:
        self.dumps.append(self.base / f"memory-{len(self.dumps)}")
        assert dump_memory(self.relay.pid, self.dumps[-1]) > 20_000_000
