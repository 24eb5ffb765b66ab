"""Who is no member gets nothing out of a running node, and cannot disturb it.

The strangers here speak QUIC by hand over a plain socket, so that every event and every datagram
that comes back is seen; they are as hostile as one without a member's key can be.
"""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from aioquic.quic.events import (
    HandshakeCompleted,
    QuicEvent,
    StreamDataReceived,
)

from crdt.invitation import Invitation
from tests.support.processes import Device, on_loopback, two_members
from tests.support.trees import wait_for, wait_until_equal
from transport.address import Address
from transport.identity import Identity
from transport.link import CloseCode, Connection, DialError
from transport.quic import QuicLink
from transport.quic_core import QuicCore, QuicOptions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

STRANGER = Identity.from_seed(b"stranger" * 4)
QUIET_S = 0.3  # a node on loopback answers within a few milliseconds
ANSWER_SIZE_MAX = 8_000  # bytes: a handshake with a certificate, acknowledgements, and a close
NOT_A_MEMBER = 11  # exit codes, see docs/cli.md
NOBODY_ANSWERED = 14


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Device]:
    with on_loopback(tmp_path, "anna") as anna:
        anna.directory.mkdir()
        (anna.directory / "secret.txt").write_text("for members\n")
        anna.up()
        yield anna


def port_of(device: Device) -> int:
    return Address.from_text(device.status()["listening"]).port


# --- no application byte --------------------------------------------------------------------------


@dataclass
class Heard:
    """What a stranger got for its trouble."""

    core: QuicCore
    events: list[QuicEvent] = field(default_factory=list)
    size: int = 0

    @property
    def application_bytes(self) -> int:
        return sum(len(one.data) for one in self.events if isinstance(one, StreamDataReceived))

    @property
    def handshake_completed(self) -> bool:
        return any(isinstance(event, HandshakeCompleted) for event in self.events)

    @property
    def close_code(self) -> CloseCode | None:
        """What the node closed with."""
        closed = self.core.ending()
        return closed.code if closed is not None and closed.by_peer else None


def knock(port: int, core: QuicCore, *, first_words: bytes = b"") -> Heard:
    """Shake hands with a node, say `first_words` as soon as possible, listen until it is quiet."""
    heard = Heard(core)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.settimeout(QUIET_S)
        core.connect(("127.0.0.1", port), now=time.monotonic())
        while True:
            for data, _ in core.datagrams_to_send(now=time.monotonic()):
                sock.send(data)
            try:
                data = sock.recv(65536)
            except TimeoutError:
                return heard
            heard.size += len(data)
            core.receive_datagram(data, ("127.0.0.1", port), now=time.monotonic())
            while (event := core.next_event()) is not None:
                heard.events.append(event)
                if isinstance(event, HandshakeCompleted) and first_words:
                    for _ in range(3):
                        core.send_stream_data(core.get_next_available_stream_id(), first_words)


def test_a_stranger_gets_no_application_byte(member: Device) -> None:
    port = port_of(member)
    frames = [b"", b"\0\0\0\x01\x90", b"\xff" * 1000, random.Random(1).randbytes(5000)]
    for first_words in frames:
        heard = knock(port, QuicCore(STRANGER, QuicOptions()), first_words=first_words)
        assert heard.handshake_completed  # by then it has shown who it is, and so have we
        assert heard.close_code == CloseCode.NOT_A_MEMBER
        assert heard.application_bytes == 0
        assert heard.size < ANSWER_SIZE_MAX
    assert member.folder()["state"] == "in sync"


class Nameless(QuicCore):
    """A client that shows no certificate, though it was asked for one."""

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls.certificate = None
        self.tls.certificate_private_key = None


def test_a_stranger_without_a_certificate_gets_no_application_byte(member: Device) -> None:
    heard = knock(port_of(member), Nameless(STRANGER, QuicOptions()), first_words=b"\0\0\0\x01\x90")
    assert heard.application_bytes == 0
    assert heard.close_code not in {None, CloseCode.OK}
    assert heard.size < ANSWER_SIZE_MAX
    assert member.folder()["state"] == "in sync"


async def test_a_stranger_that_dials_as_nodes_do_is_told_that_it_is_no_member(
    member: Device,
) -> None:
    port = port_of(member)
    link = QuicLink(STRANGER, Address("127.0.0.1", 0))

    async def handle(connection: Connection) -> None:
        await connection.wait_closed()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(link.serve, lambda _: None, handle)
            with pytest.raises(DialError) as refused:
                await link.dial(Address("127.0.0.1", port), authorize=lambda _: None)
            nursery.cancel_scope.cancel()
    assert refused.value.code is CloseCode.NOT_A_MEMBER


def test_a_node_of_another_folder_gets_nothing(member: Device, tmp_path: Path) -> None:
    """A third node with a folder of its own that was told a member's address."""
    with on_loopback(tmp_path, "eve", peers=(port_of(member),)) as eve:
        eve.directory.mkdir()
        (eve.directory / "eve.txt").write_text("hers\n")
        eve.up()
        wait_for(lambda: eve.folder()["state"] == "in sync")
        heard = knock(port_of(member), QuicCore(STRANGER, QuicOptions()))
        assert heard.application_bytes == 0
        assert eve.folder()["peers"] == member.folder()["peers"] == []
        assert [path.name for path in eve.directory.iterdir() if path.name != ".shoal"] == [
            "eve.txt"
        ]


# --- nonsense -------------------------------------------------------------------------------------


def nonsense(seed: int) -> Iterator[bytes]:
    """Datagrams that are nothing, or nearly something."""
    rng = random.Random(seed)
    core = QuicCore(STRANGER, QuicOptions())
    core.connect(("127.0.0.1", 1), now=0.0)
    initial = core.datagrams_to_send(now=0.0)[0][0]
    for _ in range(600):
        yield rng.randbytes(rng.choice([1, 5, 20, 100, 1200, 1452, 9000]))
        yield bytes([rng.choice([0xC0, 0xE0, 0xF0, 0x40])]) + rng.randbytes(1300)
        broken = bytearray(initial)
        for _ in range(rng.randint(1, 20)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        yield bytes(broken)
        yield initial[: rng.randrange(len(initial))]


def test_nonsense_does_not_disturb_a_running_node(tmp_path: Path) -> None:
    with two_members(tmp_path) as (anna, ben):
        anna.wait(devices=2)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for data in nonsense(3):
                for device in (anna, ben):
                    sock.sendto(data, ("127.0.0.1", port_from_options(device)))
        (anna.directory / "after.txt").write_text("still here\n")
        wait_until_equal(anna.directory, ben.directory, timeout_s=10, expected=len)
        assert anna.running
        assert ben.running
        assert "Traceback" not in anna.tail(1000)
        assert anna.folder()["peers"][0]["connected"]


def port_from_options(device: Device) -> int:
    return int(device.options[device.options.index("--listen") + 1].rpartition(":")[2])


# --- invitations ----------------------------------------------------------------------------------


def refused(device: Device, invitation: str) -> tuple[int, str]:
    """The exit code and the message of a `join` that must not work, and must leave nothing."""
    done = device.run(
        "join", invitation, str(device.directory), "--name", device.name, *device.options,
        check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not device.directory.exists() or not list(device.directory.iterdir())
    return done.returncode, done.stderr


def test_an_invitation_works_once(member: Device, tmp_path: Path) -> None:
    invitation = member.invite()
    with on_loopback(tmp_path, "ben") as ben, on_loopback(tmp_path, "eve") as eve:
        ben.join(invitation)
        code, message = refused(eve, invitation)
        assert code == NOT_A_MEMBER
        assert "used" in message
        assert "othing was changed" in message
        assert "shoal invite" in message
        assert len(member.folder()["peers"]) == 1


def test_an_invitation_for_two_works_twice(member: Device, tmp_path: Path) -> None:
    invitation = member.invite("--uses", "2")
    with on_loopback(tmp_path, "ben") as ben, on_loopback(tmp_path, "carla") as carla:
        ben.join(invitation)
        carla.join(invitation)
        wait_until_equal(member.directory, ben.directory, carla.directory, expected=len)
        assert {peer["name"] for peer in member.folder()["peers"]} == {"ben", "carla"}


def test_an_expired_invitation_is_refused(member: Device, tmp_path: Path) -> None:
    """The member's clock is set forward, as nobody wants to wait for the shortest time there is."""
    invitation = member.invite("--expires", "60s")
    member.stop()
    with Later(tmp_path, member.name, options=member.options) as later:
        later.up()
        code, message = refused(on_loopback(tmp_path, "eve"), invitation)
    assert code == NOT_A_MEMBER
    assert "expired" in message
    assert "othing was changed" in message
    assert "shoal invite" in message


class Later(Device):
    """A device whose wall clock is two minutes ahead."""

    def command(self, *arguments: str) -> list[str]:
        program = (
            "import time; now = time.time_ns; time.time_ns = lambda: now() + 120 * 10**9\n"
            "from node.cli.main import main; main()"
        )
        return [sys.executable, "-c", program, "--home", str(self.home), *arguments]


def test_an_unknown_invitation_is_refused(member: Device, tmp_path: Path) -> None:
    """One of this folder's shape that nobody wrote into its roster."""
    real = Invitation.from_text(member.invite())
    forged = Invitation(real.folder, b"\x07" * 32, real.inviter, real.addresses).text
    code, message = refused(on_loopback(tmp_path, "eve"), forged)
    assert code == NOT_A_MEMBER
    assert "othing was changed" in message


@pytest.mark.parametrize("text", ["", "hello", "shoal1-", "shoal1-aaaaaaaa", "shoal9-aaaa"])
def test_what_is_no_invitation(tmp_path: Path, text: str) -> None:
    code, message = refused(on_loopback(tmp_path, "eve"), text)
    assert code == 2
    assert "invitation" in message


def test_a_mistyped_invitation(member: Device, tmp_path: Path) -> None:
    text = member.invite()
    typo = "b" if text[20] != "b" else "c"
    code, message = refused(on_loopback(tmp_path, "eve"), text[:20] + typo + text[21:])
    assert code == 2
    assert "mistyped" in message


def test_an_invitation_that_nobody_answers(lonely_join: subprocess.Popen[str]) -> None:
    out, message = lonely_join.communicate(timeout=60)
    assert lonely_join.returncode == NOBODY_ANSWERED
    assert out == ""
    assert "othing was changed" in message
