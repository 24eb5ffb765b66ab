"""Two people and five devices, from the first folder to the last one that is lost: what the guide
tells. `make story` runs it and prints the chapter of `docs/guide.md` anew, as it happened.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.processes import Device, on_loopback
from tests.support.trees import wait_for, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.story, pytest.mark.timeout(600)]

LINES_MAX = 14  # of one answer


class Story:
    """Devices that do things, and what was shown meanwhile, as Markdown."""

    def __init__(self, base: Path, stack: ExitStack) -> None:
        self._base = base
        self._stack = stack
        self.lines: list[str] = []

    def device(self, name: str) -> Device:
        """A device of its own, called `name` by people."""
        one = on_loopback(self._base, name.replace("/", "-"))
        one.name = name
        one.directory = self._base / f"{one.log.stem}-home" / "Shoal"
        one.home = self._base / f"{one.log.stem}-state"
        one.directory.parent.mkdir(parents=True, exist_ok=True)
        return self._stack.enter_context(one)

    def tell(self, text: str) -> None:
        """What people read."""
        self.lines += ["", *text.strip().splitlines(), ""]

    def start(self, device: Device, shown: str, *arguments: str, peers: str = "") -> None:
        """Start a node, and show how."""
        extra = ("--peer", peers) if peers else ()
        device.start(*arguments, "--name", device.name, *device.options, *extra)
        self.show(device, shown, device.ready_line)

    def run(self, device: Device, *arguments: str, code: int = 0) -> str:
        """One call, in the folder; shown with what it printed."""
        words = [str(device.directory / a[1:]) if a.startswith("@") else a for a in arguments]
        done = device.run(*words, check=False)
        assert done.returncode == code, done
        said = done.stdout or done.stderr
        shown = [a[1:] or "." if a.startswith("@") else a for a in arguments]
        self.show(device, shlex.join(shown), said)
        return said

    def show(self, device: Device, command: str, said: str) -> None:
        """A call, and what it printed."""
        said = said.replace(str(device.directory), "~/Shoal")
        lines = said.rstrip().splitlines()
        if len(lines) > LINES_MAX:
            lines = [*lines[:LINES_MAX], "…"]
        lines = [line if len(line) <= 130 else f"{line[:110]}…" for line in lines]
        self.lines += [
            f"    {device.name}$ shoal {command}",
            *(f"    {line}" for line in lines),
            "",
        ]


@contextmanager
def story(base: Path) -> Iterator[Story]:
    """A story whose devices end with it; printed where `SHOAL_STORY` names a file."""
    with ExitStack() as stack:
        told = Story(base, stack)
        yield told
    target = os.environ.get("SHOAL_STORY")
    if target:
        lines = [a for a, b in pairwise([*told.lines, ""]) if a or b]
        Path(target).write_text("\n".join(lines).strip() + "\n")


def connected(device: Device, name: str) -> bool:
    return any(p["name"] == name and p["connected"] for p in device.folder()["peers"])


def in_sync(device: Device) -> bool:
    return bool(device.folder()["state"] == "in sync")


def test_two_people_and_five_devices(tmp_path: Path) -> None:
    with story(tmp_path) as told:
        laptop, desktop, phone = (
            told.device(name) for name in ("alice/laptop", "alice/desktop", "alice/phone")
        )
        bob, tablet = told.device("bob/laptop"), told.device("bob/tablet")
        alice_begins(told, laptop)
        phrase = told.run(laptop, "recovery", "@").strip()
        alices_other_devices(told, laptop, desktop, phone)
        bob_and_his_tablet(told, laptop, bob, tablet)
        who_did_what(told, laptop, bob, tablet)
        bob_leaves(told, laptop, desktop, phone, bob, tablet)
        everything_is_lost(told, laptop, desktop, phone, phrase)


def alice_begins(told: Story, laptop: Device) -> None:
    (laptop.directory / "photos").mkdir(parents=True)
    (laptop.directory / "photos" / "sea.jpg").write_bytes(os.urandom(400_000))
    (laptop.directory / "plan.txt").write_text("Paint the boat\n")
    told.tell("""
Alice has a folder on her laptop, and shares it with her other devices first.
""")
    told.start(laptop, "up ~/Shoal", "up", str(laptop.directory))
    told.tell("""
She prints a recovery phrase, and keeps the paper where no computer is. It makes any new device an
owner, so this is the way back when all is lost.
""")


def alices_other_devices(told: Story, laptop: Device, desktop: Device, phone: Device) -> None:
    told.tell("""
A device of her own joins by an invitation. One is for the desktop, as an owner: two owners, so
that one can remove the other when it is stolen.
""")
    at = laptop.ready_line.rpartition(" ")[2]
    text = told.run(laptop, "invite", "@", "--role", "owner", "--expires", "1h").splitlines()[0]
    told.start(desktop, "join - ~/Shoal", "join", text, str(desktop.directory))
    text = laptop.invite()
    told.tell("The phone joins by one of its own, and has no room for photos.")
    told.start(phone, "join - ~/Shoal", "join", text, str(phone.directory))
    wait_until_equal(
        laptop.directory, desktop.directory, phone.directory,
        expected=lambda tree: "photos/sea.jpg" in tree,
    )  # fmt: skip
    laptop.wait(devices=3)
    assert at
    told.run(phone, "select", "@photos", "--off")
    wait_for(lambda: not (phone.directory / "photos").exists(), timeout_s=60, say=phone.tail())
    assert (laptop.directory / "photos" / "sea.jpg").exists()
    told.tell("The photos are still on the laptop and the desktop. Here they are gone:")
    told.run(phone, "status", "@")


def bob_and_his_tablet(told: Story, laptop: Device, bob: Device, tablet: Device) -> None:
    told.tell("""
Bob sits in the same room. Three words let his laptop in; said wrong once, they are void.
""")
    at = laptop.ready_line.rpartition(" ")[2]
    code = told.run(laptop, "invite", "@", "--spoken").strip()
    told.start(bob, f"join {code} ~/Shoal", "join", code, str(bob.directory), peers=at)
    wait_for((bob.directory / "plan.txt").exists)
    told.tell("He is an editor. He may not let others in until an owner allows it.")
    told.run(bob, "invite", "@", "--role", "reader", code=2)
    told.run(laptop, "role", "bob/laptop", "editor", "@", "--may-invite")
    wait_for(lambda: may_invite(bob, "bob/laptop"))
    text = told.run(bob, "invite", "@", "--role", "reader").splitlines()[0]
    told.run(laptop, "invitations", "@")
    told.start(tablet, "join - ~/Shoal", "join", text, str(tablet.directory))
    wait_for((tablet.directory / "plan.txt").exists)
    wait_for(lambda: connected(tablet, "bob/laptop"))
    bob.wait(devices=2)
    told.tell("An invitation works once. Who is there now:")
    stranger = told.device("eve/laptop")
    words = ("join", text, str(stranger.directory), *stranger.options)
    done = stranger.run(*words, check=False)
    assert (done.returncode, stranger.directory.exists()) == (11, False), done
    told.show(stranger, "join - ~/Shoal", done.stderr)
    told.run(laptop, "devices", "@")


def may_invite(device: Device, name: str) -> bool:
    rows = device.run_json("devices", str(device.directory))
    return any(one["name"] == name and one["may_invite"] for one in rows)


def who_did_what(told: Story, laptop: Device, bob: Device, tablet: Device) -> None:
    (bob.directory / "plan.txt").write_text("Paint the boat blue\n")
    (bob.directory / "colours").mkdir()
    (bob.directory / "colours" / "blue.txt").write_text("RAL 5002\n")
    wait_for(lambda: (laptop.directory / "plan.txt").read_text() == "Paint the boat blue\n")
    wait_for((laptop.directory / "colours" / "blue.txt").exists)
    wait_for((tablet.directory / "colours" / "blue.txt").exists)
    told.tell("Bob works on the plan. Alice sees who did what, from signed entries:")
    told.run(laptop, "log", "@", "--limit", "5")
    (tablet.directory / "plan.txt").write_text("Paint the boat red\n")
    wait_for(lambda: bool(tablet.folder()["local"]))
    told.tell("""
The tablet may only read. What is changed on it stays on it, and says so; `shoal revert` throws it
away, into the tablet's history.
""")
    told.run(tablet, "status", "@")
    told.run(tablet, "revert", "@plan.txt")
    wait_for(lambda: (tablet.directory / "plan.txt").read_text() == "Paint the boat blue\n")
    assert (laptop.directory / "plan.txt").read_text() == "Paint the boat blue\n"


def bob_leaves(
    told: Story, laptop: Device, desktop: Device, phone: Device, bob: Device, tablet: Device
) -> None:
    told.tell("""
Bob moves on. Alice removes both of his devices; what is written from then on is under a key that
they do not get. A name that stands for several devices is refused, and so is a wrong one:
""")
    told.run(laptop, "remove", "bob", "@", code=2)
    told.run(laptop, "remove", "bbo/laptop", "@", code=2)
    told.run(laptop, "remove", "bob/laptop", "@")
    told.run(laptop, "remove", "bob/tablet", "@")
    wait_for(lambda: bob.folder()["state"] == "stopped", timeout_s=60)
    (laptop.directory / "secret.txt").write_text("for Alice's devices\n")
    wait_for((desktop.directory / "secret.txt").exists)
    wait_for((phone.directory / "secret.txt").exists)
    told.tell("Bob keeps what he had, and sees why nothing comes any more:")
    told.run(bob, "status", "@")
    assert not (bob.directory / "secret.txt").exists()
    assert (bob.directory / "plan.txt").read_text() == "Paint the boat blue\n"


def everything_is_lost(
    told: Story, laptop: Device, desktop: Device, phone: Device, phrase: str
) -> None:
    at = phone.ready_line.rpartition(" ")[2]
    laptop.wait(devices=2)
    bob_is_out = json.loads(phone.run("devices", str(phone.directory), "--json").stdout)
    assert {one["person"] for one in bob_is_out} == {"alice"}
    laptop.kill()
    desktop.kill()
    told.tell("""
Years later the laptop and the desktop burn. The phone is a mere editor, and cannot remove anybody
or let anybody in. The paper can: on a new machine, with the phone (or a relay) to talk to.
""")
    new = told.device("alice/new")
    first, *_, last = phrase.split()
    wrong = " ".join([*phrase.split()[:-1], "abandon"])
    done = new.run("join", wrong, str(new.directory), *new.options, "--peer", at, check=False)
    assert done.returncode in {2, 11}, done
    assert not new.directory.exists()
    told.start(
        new, f'join "{first} … {last}" ~/Shoal --peer {at}',
        "join", phrase, str(new.directory), peers=at,
    )  # fmt: skip
    wait_for((new.directory / "secret.txt").exists)
    told.run(new, "remove", "alice/laptop", "@")
    told.run(new, "remove", "alice/desktop", "@")
    told.run(new, "devices", "@")
    assert "alice/laptop" not in str(new.run_json("devices", str(new.directory)))
    told.tell("""
What no other device kept, such as photos that the phone left out long ago, is lost with the
laptop and the desktop, unless a relay kept it: see `relay.md`.
""")
