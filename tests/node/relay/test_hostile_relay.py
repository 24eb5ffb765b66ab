"""Forty ways for a relay to do harm, and none of them does: what a member signed stays as it was,
nothing else appears in anybody's tree, members go on syncing, and who lied is named.

Each script runs between two members that are never awake together at first; then these meet, and
must come out equal without having believed a word.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest
import trio.testing

from crdt.deposit import sealed_hash, sign_deposit
from crdt.entry import START, EntryKind, build
from crdt.ids import BlockId, DeviceId, FolderId
from crdt.roster_ops import Add, Remove, Role, pack_ops
from crdt.seal import device_of
from crdt.version_vector import EMPTY, VersionVector
from tests.support.hostile_relay import HostileRelay, Script, Words, honest
from tests.support.memory_storage import MemoryStorage
from tests.support.relay_world import Member, World
from transport.frames import encode
from transport.link import Connection
from transport.messages import (
    Ack,
    Block,
    Bye,
    Entries,
    Have,
    Hello,
    Located,
    Message,
    Missing,
    OpenBlocks,
    Want,
)
from transport.relay_messages import Depot, Here, Lacking, Notice, Seen, Stored

pytestmark = pytest.mark.slow

NOISE = random.Random(5)
STRANGER = DeviceId(b"\x0b" * 32)
PHASE_S = 200.0  # how long a script has, on a clock that jumps


def nothing(_: HostileRelay) -> None:
    """Between the time of anna and that of ben."""


@dataclass(frozen=True)
class Case:
    """One script. `told` must stand in what anna or ben is told; empty: nothing need be said."""

    script: Script = honest
    told: str = ""
    on_connect: Callable[[HostileRelay, Connection], Awaitable[None]] | None = None
    slow_s: float = 0.0
    before_ben: Callable[[HostileRelay], object] = nothing
    counts: bool = False  # ben gets everything all the same


# --- scripts: entries -----------------------------------------------------------------------------


M = TypeVar("M", bound=Message)


def every(kind: type[M], change: Callable[[M], Words]) -> Script:
    """Change each message of a kind."""
    return lambda _, message: change(message) if isinstance(message, kind) else [message]


def entries(change: Callable[[list[bytes]], list[bytes]]) -> Script:
    """Change each list of entries; an empty one is not sent."""

    def script(_: HostileRelay, message: Message) -> Words:
        if not isinstance(message, Entries):
            return [message]
        changed = change(list(message.entries))
        return [Entries(tuple(changed))] if changed else []

    return script


def flip(data: bytes, at: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def remember_and_replay(relay: HostileRelay, message: Message) -> Words:
    if isinstance(message, Entries):
        before = relay.memory.get("batch", message)
        relay.memory["batch"] = message
        return [message, before]  # type: ignore[list-item]
    return [message]


def forged(
    relay: HostileRelay, seed: bytes, kind: EntryKind, body: bytes, folder: FolderId | None = None
) -> bytes:
    """An entry that continues a device's log as the relay knows it."""
    hosted = relay.relay.folders[relay.world.folder]
    return build(
        seed,
        folder=folder or relay.world.folder,
        after=hosted._positions.get(device_of(seed), START),
        deps=hosted.have,
        lamport=1_000,
        kind=kind,
        body=body,
        epoch=0 if kind is EntryKind.ROSTER else next(iter(hosted.roster.epochs)),
    ).to_bytes()


def inject(make: Callable[[HostileRelay], bytes]) -> Script:
    """Once, put an entry of the relay's own making before the first real one."""

    def script(relay: HostileRelay, message: Message) -> Words:
        if isinstance(message, Entries) and "injected" not in relay.memory:
            relay.memory["injected"] = True
            return [Entries((make(relay),)), message]
        return [message]

    return script


def tree_by_relay(relay: HostileRelay) -> bytes:
    return forged(relay, relay.identity.seed, EntryKind.TREE, b"not sealed at all")


def stranger_added(relay: HostileRelay) -> bytes:
    body = pack_ops([Add(STRANGER, Role.OWNER, "stranger")])
    return forged(relay, relay.identity.seed, EntryKind.ROSTER, body)


def owner_removed(relay: HostileRelay) -> bytes:
    hosted = relay.relay.folders[relay.world.folder]
    owner = relay.world.members[0].identity.device
    at = hosted._positions[owner]
    body = pack_ops([Remove(owner, at.seq, at.head)])
    return forged(relay, relay.identity.seed, EntryKind.ROSTER, body)


def by_nobody(relay: HostileRelay) -> bytes:
    return forged(
        relay, b"nobody.." * 4, EntryKind.ROSTER, pack_ops([Add(STRANGER, Role.OWNER, "x")])
    )


def other_folder(relay: HostileRelay) -> bytes:
    body = pack_ops([Add(STRANGER, Role.OWNER, "x")])
    return forged(relay, relay.identity.seed, EntryKind.ROSTER, body, folder=FolderId(b"o" * 32))


def with_future(vector: VersionVector) -> VersionVector:
    return VersionVector({device: seq + 1_000 for device, seq in vector.items()})


def future(_: HostileRelay, message: Message) -> Words:
    if isinstance(message, Have | Ack):
        return [replace(message, have=with_future(message.have), heads={})]
    return [message]


def complete_too(_: HostileRelay, message: Message) -> Words:
    if isinstance(message, Have | Ack):
        return [replace(message, complete=with_future(message.have))]
    return [message]


def wrong_heads(_: HostileRelay, message: Message) -> Words:
    if isinstance(message, Have | Ack):
        return [replace(message, heads=dict.fromkeys(message.heads, b"w" * 32))]
    return [message]


def strangers_in_have(_: HostileRelay, message: Message) -> Words:
    if isinstance(message, Have):
        return [replace(message, have=message.have.with_counter(STRANGER, 7))]
    return [message]


# --- scripts: blocks and deposits -----------------------------------------------------------------


def swapped(relay: HostileRelay, message: Message) -> Words:
    if isinstance(message, Block):
        before = relay.memory.get("block", message)
        relay.memory["block"] = message
        assert isinstance(before, Block)
        return [replace(message, sealed=before.sealed)]
    return [message]


def rubbish(relay: HostileRelay, message: Message) -> Words:
    return (
        [replace(message, sealed=flip(message.sealed, 99))]
        if isinstance(message, Block)
        else [message]
    )


def rubbish_by(seed_of: Callable[[HostileRelay], bytes]) -> Script:
    """Rubbish with a statement that somebody really signed."""

    def script(relay: HostileRelay, message: Message) -> Words:
        if not isinstance(message, Block):
            return [message]
        seed, sealed = seed_of(relay), flip(message.sealed, 99)
        signature = sign_deposit(seed, relay.world.folder, message.block, sealed_hash(sealed))
        device = relay.world.members[0].identity.device
        return [replace(message, sealed=sealed, depositor=bytes(device), signature=signature)]

    return script


def claims_to_hold(_: HostileRelay, message: Message) -> Words:
    if isinstance(message, Lacking):
        return [Lacking(message.request, ())]
    return [Missing(message.request, (message.block,))] if isinstance(message, Block) else [message]


def rolls_back(relay: HostileRelay) -> None:
    assert isinstance(relay.storage, MemoryStorage)
    folder = relay.storage._folders[relay.world.folder]
    del folder.log[-2:]


def always_continues(_: HostileRelay, message: Message) -> Words:
    if isinstance(message, Depot):
        return [replace(message, continues=True)]
    return claims_to_hold(_, message)


def new_generations(relay: HostileRelay, message: Message) -> Words:
    if isinstance(message, Stored | Depot):
        number = relay.memory["n"] = int(str(relay.memory.get("n", 0))) + 1
        place = replace(message.place, generation=number.to_bytes(16, "big"))
        return [replace(message, place=place)]
    return [message]


# --- scripts: streams of its own ------------------------------------------------------------------


async def opens_many(_: HostileRelay, connection: Connection) -> None:
    for _number in range(100):
        stream = await connection.open_stream()
        await stream.send_all(b"\0")


async def asks_for_blocks(relay: HostileRelay, connection: Connection) -> None:
    stream = await connection.open_stream()
    await stream.send_all(encode(OpenBlocks(relay.world.folder)))
    held = await relay.storage.usage(relay.world.folder)
    assert held.blocks >= 0
    await stream.send_all(encode(Want(1, (BlockId(b"b" * 32),))))
    relay.memory["answer"] = await stream.receive_some()


async def says_hello_itself(relay: HostileRelay, connection: Connection) -> None:
    stream = await connection.open_stream()
    await stream.send_all(encode(Hello(relay.world.folder, "relay", "evil")))
    await stream.send_all(encode(Have(EMPTY, EMPTY, {})))
    await stream.send_all(encode(Bye(0, "")))


async def huge_frame(_: HostileRelay, connection: Connection) -> None:
    stream = await connection.open_stream()
    await stream.send_all(b"\xff\xff\xff\xff\x01" + bytes(1000))


async def half_a_frame(relay: HostileRelay, connection: Connection) -> None:
    stream = await connection.open_stream()
    await stream.send_all(encode(Hello(relay.world.folder, "relay", "evil"))[:9])
    await stream.send_eof()


async def noise(_: HostileRelay, connection: Connection) -> None:
    stream = await connection.open_stream()
    await stream.send_all(NOISE.randbytes(5_000))


def anna_s_seed(relay: HostileRelay) -> bytes:
    return relay.world.members[0].identity.seed


CASES: dict[str, Case] = {
    # entries
    "drops all entries": Case(entries(lambda _: []), "does not hand them out"),
    "drops every second entry": Case(entries(lambda es: es[::2])),
    "sends every entry twice": Case(
        entries(lambda es: [e for e in es for _ in (0, 1)]), counts=True
    ),
    "replays old batches": Case(remember_and_replay, counts=True),
    "turns the order round": Case(entries(lambda es: es[::-1]), counts=True),
    "flips a bit in a header": Case(
        entries(lambda es: [flip(e, 20) for e in es]), "broke the protocol"
    ),
    "flips a bit in a signature": Case(
        entries(lambda es: [flip(e, -200) for e in es]), "broke the protocol"
    ),
    "flips a bit in a body": Case(
        entries(lambda es: [flip(e, -5) for e in es]), "broke the protocol"
    ),
    "cuts entries short": Case(entries(lambda es: [e[:-1] for e in es]), "broke the protocol"),
    "sends rubbish as entries": Case(
        entries(lambda es: [b"rubbish"] * len(es)), "broke the protocol"
    ),
    "sends more than fits": Case(
        every(Entries, lambda m: [m, *[Entries((b"r" * 4_000_000,))] * 5]), "broke the protocol"
    ),
    "writes into the tree itself": Case(inject(tree_by_relay), "its role is relay"),
    "adds a stranger as owner": Case(inject(stranger_added), counts=True),
    "removes the owner": Case(inject(owner_removed), counts=True),
    "brings entries of nobody": Case(inject(by_nobody), counts=True),
    "brings entries of another folder": Case(inject(other_folder), "another folder"),
    # what it says to have
    "claims to have the future": Case(future, "does not hand them out"),
    "claims that all is complete": Case(complete_too, counts=True),
    "claims to have what strangers wrote": Case(strangers_in_have, "does not hand them out"),
    "shows other heads": Case(wrong_heads, "a fork"),
    "never acknowledges": Case(every(Ack, lambda _: [])),
    "settles what was never sent": Case(
        every(Ack, lambda m: [replace(m, settled=5_000)]), "broke the protocol"
    ),
    "forgets what it had confirmed": Case(told="has forgotten", before_ben=rolls_back),
    "greets for another folder": Case(
        every(Hello, lambda m: [replace(m, folder=FolderId(b"o" * 32))]), "broke the protocol"
    ),
    "speaks out of turn": Case(every(Hello, lambda m: [m, m]), "broke the protocol"),
    "says bye instead of hello": Case(every(Hello, lambda _: [Bye(7, "no")]), "does not serve"),
    "says bye at once": Case(every(Hello, lambda m: [m, Bye(7, "no")]), "does not serve"),
    "floods with words for people": Case(
        every(Ack, lambda m: [*[Notice("x")] * 200, m]), "is full"
    ),
    "accuses others": Case(every(Ack, lambda m: [Seen({STRANGER: EMPTY}), m]), counts=True),
    # blocks
    "has no block": Case(every(Block, lambda m: [Missing(m.request, (m.block,))]), "does not have"),
    "swaps blocks": Case(swapped, "broke the protocol"),
    "flips a bit in a block": Case(rubbish, "broke the protocol"),
    "makes rubbish with a forged statement": Case(
        rubbish_by(lambda relay: relay.identity.seed), "broke the protocol"
    ),
    "makes rubbish together with a member": Case(
        rubbish_by(anna_s_seed), "deposited something else"
    ),
    "sends blocks that nobody asked for": Case(
        every(Block, lambda m: [m, replace(m, block=BlockId(b"b" * 32))]), "broke the protocol"
    ),
    "answers another request": Case(
        every(Block, lambda m: [replace(m, request=m.request + 1)]), "broke the protocol"
    ),
    "announces what it has not": Case(
        every(Block, lambda m: [Here(0, (BlockId(b"x" * 32), m.block)), m]), counts=True
    ),
    "answers questions falsely": Case(
        every(Located, lambda m: [replace(m, blocks=())]), counts=True
    ),
    # deposits
    "lacks what was not offered": Case(
        every(Lacking, lambda m: [replace(m, blocks=(BlockId(b"l" * 32),))]), "broke the protocol"
    ),
    "claims to hold all blocks": Case(claims_to_hold, "does not have what it confirmed"),
    "continues from anywhere": Case(always_continues, "does not have what it confirmed"),
    "confirms another request": Case(
        every(Stored, lambda m: [replace(m, request=m.request + 1)]), "broke the protocol"
    ),
    "is always full": Case(
        every(Lacking, lambda m: [Lacking(m.request, (), "no room")]), "is full"
    ),
    "is another one every time": Case(new_generations),
    "confirms nothing": Case(every(Stored, lambda _: [])),
    # frames and streams
    "drips": Case(slow_s=3.0),
    "sends huge frames": Case(on_connect=huge_frame, told="broke the protocol"),
    "sends half a frame": Case(on_connect=half_a_frame, counts=True),
    "sends noise": Case(on_connect=noise, told="broke the protocol"),
    "opens a hundred streams": Case(on_connect=opens_many, told="broke the protocol"),
    "asks members for blocks": Case(on_connect=asks_for_blocks, counts=True),
    "greets members itself": Case(on_connect=says_hello_itself, counts=True),
}


# --- the story ------------------------------------------------------------------------------------


async def watch(member: Member, legitimate: set[bytes], told: list[str]) -> None:
    """While it runs: nothing but what a member wrote is ever in its tree."""
    seen = 0
    while True:
        told += [w for w in member.engine.warnings.values() if w not in told]
        for path, what in member.tree().items():
            content = getattr(what, "content", b"")
            assert content in legitimate or not content, f"{path} holds what nobody wrote"
        seen = await member.engine.changed.wait_past(seen)


async def run_for(seconds: float, member: Member, legitimate: set[bytes], told: list[str]) -> None:
    with trio.move_on_after(seconds):
        await watch(member, legitimate, told)


@pytest.mark.parametrize("name", CASES)
async def test_a_hostile_relay(name: str, autojump_clock: trio.testing.MockClock) -> None:
    case = CASES[name]
    world = World(2)
    anna, ben = world.members
    relay = HostileRelay(world, 1)
    small, large, more = b"small", NOISE.randbytes(200_000), NOISE.randbytes(90_000)
    legitimate = {small, large, more, b"by ben", b""}
    told: list[str] = []
    async with relay.awake():
        await world.introduce(relay)
    relay.script, relay.on_connect, relay.slow_s = case.script, case.on_connect, case.slow_s
    async with relay.awake(), anna.awake():
        for path, data in (("small.txt", small), ("large.bin", large), ("more.bin", more)):
            anna.write(path, data)
            await run_for(PHASE_S / 3, anna, legitimate, told)
        assert anna.engine.holders() <= 2
    case.before_ben(relay)
    async with relay.awake(), ben.awake():
        ben.write("ben.txt", b"by ben")
        await run_for(PHASE_S, ben, legitimate, told)
        await ben.engine.blocks.lacking([BlockId(b"q" * 32)])
        if case.counts:
            assert ben.tree().keys() >= {"small.txt", "large.bin", "more.bin"}
    # Then they meet, with the relay still there and still lying.
    async with relay.awake(), anna.awake(), ben.awake(anna.address):
        await anna.until(lambda: "ben.txt" in anna.tree())
        await ben.until(lambda: ben.tree().keys() >= anna.tree().keys())
        await anna.until(lambda: anna.tree() == ben.tree())
        told += [*anna.engine.warnings.values(), *ben.engine.warnings.values()]
    assert set(anna.tree()) == {"small.txt", "large.bin", "more.bin", "ben.txt"}
    assert case.told in "\n".join(told), "\n".join(told) or "nothing was said"
    untouched = case.on_connect is None and case.before_ben is nothing and not case.slow_s
    assert relay.said or not untouched, "the script changed nothing"
