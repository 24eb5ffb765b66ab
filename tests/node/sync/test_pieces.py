"""An edited block travels as what differs from the old one, between whole devices; and whatever the
other side makes of that, the block comes all the same, whole if need be, and nothing false is used.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from crdt.ids import BlockId
from crdt.roster_ops import Role
from node.blocks.codec import seal_answer
from node.blocks.pieces import HASH_SIZE
from node.sync.blocks import BlockExchange
from tests.support.relay_world import Member, RelayHost, World
from transport.messages import Block, Message, Missing, Pieces

NOISE = random.Random(4).randbytes(3_000_000)
KIB = 1024

Answer = Callable[[int, BlockId, bytes], Awaitable[Message]]
Change = Callable[[BlockExchange, Answer], Answer]


class Spy:
    """Stands between a device and what it is asked for, and notes what goes out."""

    def __init__(self, member: Member, change: Change | None = None) -> None:
        self.answers: list[Message] = []
        self.hinted = 0
        exchange = member.engine.blocks
        honest = exchange._answers

        async def answers(peer: Any, owed: Any, held: bytes) -> list[Message]:
            self.hinted += bool(held)

            async def really(request: int, block: BlockId, held: bytes) -> Message:
                (said,) = await honest(peer, [(request, block)], held)
                return said

            answer = change(exchange, really) if change else really
            said = [await answer(request, block, held) for request, block in owed]
            self.answers += said
            return said

        exchange._answers = answers  # type: ignore[method-assign]

    def size(self, kind: type[Block | Pieces]) -> int:
        """Sealed bytes that went out in answers of a kind."""
        return sum(len(one.sealed) for one in self.answers if isinstance(one, kind))

    @property
    def pieces(self) -> list[Pieces]:
        return [one for one in self.answers if isinstance(one, Pieces)]


async def meet(old: bytes, new: bytes, change: Change | None = None) -> tuple[Spy, Member]:
    """Anna saves `old`, then `new`; ben gets both. `change` makes anna's answers for the second."""
    world = World(2)
    anna, ben = world.members
    async with anna.awake(), ben.awake(anna.address):
        anna.write("file", old)
        await ben.until(lambda: ben.tree().get("file") == old)
        await anna.held_by(2)
        spy = Spy(anna, change)
        anna.write("file", new)
        await ben.until(lambda: ben.tree().get("file") == new)
        await anna.held_by(2)
        return spy, ben


def edited(data: bytes, *places: int) -> bytes:
    for at in places:
        data = data[:at] + b"edit" + data[at + 4 :]
    return data


@pytest.mark.parametrize("size", [10 * KIB, 300 * KIB, 2_500_000])
async def test_an_edit_of_a_few_bytes_costs_little(size: int, autojump_clock: Any) -> None:
    old = NOISE[:size]
    spy, ben = await meet(old, edited(old, size // 2))
    assert spy.pieces
    assert spy.size(Pieces) + spy.size(Block) < 5 * KIB  # a tiny node comes whole
    assert ben.engine.blocks.statistics().in_vain == 0


async def test_nodes_of_the_list_travel_likewise(autojump_clock: Any) -> None:
    old = random.Random(7).randbytes(8_000_000)
    spy, _ = await meet(old, edited(old, 1_000_000, 4_000_000, 7_000_000))
    assert spy.hinted > 3, "three data blocks, and nodes unless they are tiny"


async def test_an_insertion_at_the_front_and_an_append(autojump_clock: Any) -> None:
    old = NOISE[:2_000_000]
    spy, _ = await meet(old, b"x" + old)
    assert spy.size(Pieces) + spy.size(Block) < 5 * KIB
    spy, _ = await meet(old, old + b"y" * 100)
    assert spy.size(Pieces) + spy.size(Block) < 5 * KIB


async def test_a_file_with_other_bytes_altogether_comes_whole(autojump_clock: Any) -> None:
    spy, _ = await meet(NOISE[:200_000], NOISE[-200_000:])
    assert not spy.pieces
    assert spy.size(Block) >= 200_000


async def test_a_peer_that_knows_nothing_of_pieces_sends_the_block(autojump_clock: Any) -> None:
    def older(_: BlockExchange, answer: Answer) -> Answer:
        return lambda request, block, held: answer(request, block, b"")

    old = NOISE[: 300 * KIB]
    spy, _ = await meet(old, edited(old, 1_000), older)
    assert spy.hinted
    assert not spy.pieces
    assert spy.size(Block)


# --- peers that lie -------------------------------------------------------------------------------


def first_then_honest(lie: Callable[[BlockExchange, Pieces], Message]) -> Change:
    """The first answer in pieces is replaced by a lie."""
    lied: list[Message] = []

    def change(exchange: BlockExchange, answer: Answer) -> Answer:
        async def changed(request: int, block: BlockId, held: bytes) -> Message:
            said = await answer(request, block, held)
            if isinstance(said, Pieces) and not lied:
                said = lie(exchange, said)
                lied.append(said)
            return said

        return changed

    return change


def resealed(exchange: BlockExchange, message: Pieces, plain: bytes) -> Pieces:
    """What a member with the key can seal."""
    folder = exchange._folder
    assert folder.keys.current is not None
    key = folder.keys.epoch(folder.keys.current)
    sealed = seal_answer(key, message.block, plain, nonce=folder.random.bytes(24))
    return Pieces(message.request, message.block, sealed)


LIES: dict[str, Callable[[BlockExchange, Pieces], Message]] = {
    "noise": lambda _, m: Pieces(m.request, m.block, NOISE[:300]),
    "too long": lambda _, m: Pieces(m.request, m.block, NOISE[:2_000_000]),
    "not msgpack": lambda x, m: resealed(x, m, b"\xc1" * 50),
    "nothing": lambda x, m: resealed(x, m, b"\x90"),
    "no such piece": lambda x, m: resealed(x, m, b"\x91\x92\xcd\xff\xff\x01"),
    "a bomb": lambda x, m: resealed(x, m, bytes(10**7)),
    "endless pieces": lambda x, m: resealed(x, m, b"\xdc\xff\xff" + b"\x92\x00\x01" * 0xFFFF),
}


@pytest.mark.parametrize("lie", LIES)
async def test_what_is_no_answer_costs_the_connection_and_nothing_else(
    lie: str, autojump_clock: Any
) -> None:
    old = NOISE[: 300 * KIB]
    spy, ben = await meet(old, edited(old, 1_000), first_then_honest(LIES[lie]))
    assert any(isinstance(one, Block) for one in spy.answers), "then it was asked for whole"
    assert ben.tree()["file"] == edited(old, 1_000)


async def test_pieces_that_fit_and_are_false_are_not_used(autojump_clock: Any) -> None:
    """By a liar, or because two short hashes met by chance, which nobody can help."""

    def false(exchange: BlockExchange, answer: Answer) -> Answer:
        async def changed(request: int, block: BlockId, held: bytes) -> Message:
            if not held:
                return await answer(request, block, held)
            # The same pieces, in another order.
            hashes = [held[at : at + HASH_SIZE] for at in range(0, len(held), HASH_SIZE)]
            return await answer(request, block, b"".join(reversed(hashes)))

        return changed

    old = NOISE[: 300 * KIB]
    new = edited(old, 1_000)
    spy, ben = await meet(old, new, false)
    assert spy.pieces
    assert spy.size(Block)
    assert ben.tree()["file"] == new
    assert not ben.warnings


async def test_pieces_for_a_block_of_which_nothing_was_said(autojump_clock: Any) -> None:
    """Never asked for: not used, and not asked for at once again and again."""
    played: list[Message] = []

    def play(exchange: BlockExchange, answer: Answer) -> Answer:
        async def changed(request: int, block: BlockId, held: bytes) -> Message:
            if len(played) >= 5:
                return await answer(request, block, b"")
            played.append(resealed(exchange, Pieces(request, block, b"x"), b"\x91\x92\x00\x01"))
            return played[-1]

        return changed

    before = trio.current_time()
    _, ben = await meet(NOISE[:100], NOISE[: 100 * KIB], play)
    assert ben.tree()["file"] == NOISE[: 100 * KIB]
    assert len(played) == 5
    assert trio.current_time() - before > 2


# --- what else can happen -------------------------------------------------------------------------


async def test_the_old_block_was_edited_away_meanwhile(autojump_clock: Any) -> None:
    """Ben edits the same file before anna's edit comes: nothing is held then, nothing is lost."""
    world = World(2)
    anna, ben = world.members
    old = NOISE[: 100 * KIB]
    async with anna.awake():
        async with ben.awake(anna.address):
            anna.write("file", old)
            await ben.until(lambda: ben.tree().get("file") == old)
            await anna.held_by(2)
        anna.write("file", edited(old, 500))
        await anna.until(lambda: anna.engine.folder.have != ben.engine.folder.have)
        ben.write("file", NOISE[-100 * KIB :])
        async with ben.awake(anna.address):
            await ben.until(lambda: len(ben.tree()) == 2)
            await anna.until(lambda: len(anna.tree()) == 2)
            both = {edited(old, 500), NOISE[-100 * KIB :]}
            await ben.until(lambda: set(ben.tree().values()) == both)
            await anna.until(lambda: set(anna.tree().values()) == both)


async def test_a_relay_sends_whole_blocks(autojump_clock: Any) -> None:
    """It cannot look into them, and is not told what is held."""
    world = World(2)
    anna, ben = world.members
    relay = RelayHost(world, 1)
    old = NOISE[: 300 * KIB]
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake(), ben.awake(anna.address):
            anna.write("file", old)
            await ben.until(lambda: ben.tree().get("file") == old)
        async with anna.awake():
            anna.write("file", edited(old, 1_000))
            await anna.until(lambda: anna.engine.in_sync(relay.identity.device))
            device = relay.identity.device
            stored = relay.relay.folders[world.folder]
            await anna.until(lambda: stored.have == anna.engine.folder.have)
            assert anna.engine.folder.roster.role(device) is Role.RELAY
            await anna.held_by(2)
        async with ben.awake():
            await ben.until(lambda: ben.tree().get("file") == edited(old, 1_000))


async def test_a_reader_that_was_removed_gets_no_pieces(autojump_clock: Any) -> None:
    world = World(2)
    anna, ben = world.members
    async with anna.awake(), ben.awake(anna.address):
        anna.write("file", NOISE[: 100 * KIB])
        await ben.until(lambda: ben.tree().get("file") is not None)
        await anna.held_by(2)
        content = next(iter(anna.engine.folder.tree.all_rows())).content
        assert content.manifest is not None
        block = content.manifest.blocks[0].block
        answers = anna.engine.blocks._answers
        nobody = type(ben.identity.device)(b"\x07" * 32)
        assert isinstance((await answers(nobody, [(1, block)], b"abcde"))[0], Missing)
        assert isinstance((await answers(ben.identity.device, [(1, block)], b"abcde"))[0], Block)


async def test_a_block_that_no_file_holds_any_more_is_missing_and_no_bug(
    autojump_clock: Any,
) -> None:
    # Found by a simulated world: the file was edited again between the question and the want.
    world = World(2)
    anna, ben = world.members
    async with anna.awake(), ben.awake(anna.address):
        gone = BlockId(b"g" * BlockId.size)
        ours = ben.engine.folder.identity.device
        answers = await anna.engine.blocks._answers(ours, [(1, gone)], bytes(2 * HASH_SIZE))
        assert answers == [Missing(1, (gone,))]
