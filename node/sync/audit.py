"""Looks whether a relay really has what it says: fetches a few random blocks and opens them.

An answer to an offer costs a liar nothing; a block that opens cannot be made up.
"""

from __future__ import annotations

from typing import Final

import trio

from crdt.errors import IntegrityError, PeerError
from crdt.ids import BlockId, ItemId
from crdt.slot import BlockRef
from node.blocks.codec import epoch_of, open_block
from node.index.relays import Relays
from node.ports import Random
from node.sync.folder import Folder
from transport.frames import BLOCKS, FrameDecoder, encode
from transport.link import Connection
from transport.messages import Block, Message, Missing, OpenBlocks, Want

SAMPLES: Final = 3  # blocks; a relay that lost a tenth of them is found out within a day
ANSWER_TIMEOUT_S: Final = 120.0  # for all samples: a busy relay may be slow, a dead one is noticed


async def relay_keeps_its_word(
    connection: Connection, folder: Folder, rows: Relays, revision: int
) -> bool | None:
    """False when the relay does not have a block of our tree, up to `revision`, that it confirmed;
    None when there is nothing to ask about.

    Raises:
        PeerError: it broke the protocol.
        LinkClosedError: the connection ended.
    """
    samples = _samples(folder, rows, revision)
    if not samples:
        return None
    stream = await connection.open_stream()
    try:
        with trio.move_on_after(ANSWER_TIMEOUT_S):
            await stream.send_all(encode(OpenBlocks(folder.id)))
            await stream.send_all(encode(Want(1, tuple(samples))))
            decoder, answers = FrameDecoder(BLOCKS), list[Message]()
            while len(answers) < len(samples):
                data = await stream.receive_some()
                if not data:
                    return False
                answers += decoder.feed(data)
            return all(_holds(folder, samples, answer) for answer in answers)
        return False
    finally:
        await stream.aclose()


def _holds(folder: Folder, samples: dict[BlockId, BlockRef], answer: Message) -> bool:
    match answer:
        case Block(block=block, sealed=sealed) if block in samples:
            if epoch_of(sealed) not in folder.keys.epochs:
                return True  # nobody can tell yet
            try:
                open_block(folder.keys, samples[block], sealed)
            except IntegrityError:
                return False
            return True
        case Missing():
            return False
        case _:
            raise PeerError("answered something else than it was asked for")


def _samples(folder: Folder, rows: Relays, revision: int) -> dict[BlockId, BlockRef]:
    """Random data blocks of random files on this disk."""
    found: dict[BlockId, BlockRef] = {}
    for _ in range(SAMPLES):
        item = rows.random_item(ItemId(folder.random.bytes(16)), revision)
        blocks = [] if item is None else folder.locations.blocks_of(item)
        if blocks:
            ref, _ = blocks[draw(folder.random, len(blocks))]
            found[ref.block] = ref
    return found


def draw(random: Random, count: int) -> int:
    """A number below `count`."""
    return int.from_bytes(random.bytes(8), "big") % count
