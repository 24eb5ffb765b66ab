"""A relay's storage at work, to be killed: `python -m tests.support.relay_churn DIR FIRST SEED`.

Puts, drops, takes drops back, collects and scrubs without end, and prints a line before what may
make a block go, and after whatever is durable. Block number N is the same in every life.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import trio

from crdt.deposit import sealed_hash, sign_deposit
from crdt.ids import BlockId, DeviceId, FolderId
from node.ports import SystemRandom, TrioThreads
from node.relay import packs
from node.relay.sqlite_storage import SqliteStorage
from node.relay.storage import Deposit
from transport.identity import Identity

FOLDER = FolderId(b"f" * 32)
WRITER = Identity.from_seed(b"w" * 32)
PACK_SIZE = 256 * 1024  # so that packs are finished, rewritten and deleted all the time


def deposit(number: int) -> Deposit:
    """Block `number`."""
    noise = random.Random(number)
    block = BlockId(number.to_bytes(32, "big"))
    sealed = noise.randbytes(noise.choice((700, 5_000, 60_000)))
    digest = sealed_hash(sealed)
    signature = sign_deposit(WRITER.seed, FOLDER, block, digest)
    return Deposit(block, sealed, digest, DeviceId(WRITER.device), signature)


def say(what: str, *numbers: int) -> None:
    """One line, out at once."""
    print(what, *numbers, flush=True)


async def churn(directory: Path, first: int, seed: int) -> None:
    """Work until killed."""
    chance = random.Random(seed)
    storage = SqliteStorage(directory, TrioThreads(4), SystemRandom())
    await storage.folders()
    await storage.host(FOLDER, WRITER.device)
    say("ready")
    number, here = first, list(range(max(0, first - 40), first))
    while True:
        new = list(range(number, number + chance.randint(1, 4)))
        number = new[-1] + 1
        here += new
        await storage.put(FOLDER, [deposit(one) for one in new])
        say("put", *new)
        some = chance.sample(here, min(len(here), 4))
        blocks = [deposit(one).block for one in some]
        what = chance.random()
        if what < 0.5:
            say("dropping", *some)
            await storage.drop(FOLDER, blocks, now_s=0)
        elif what < 0.6:
            lacking = await storage.lacking(FOLDER, blocks)
            say("wanted", *(one for one in some if deposit(one).block not in lacking))
        elif what < 0.9:
            say("collecting")
            await storage.collect(before_s=0)
            here = here[-40:]
        else:
            step = await storage.scrub(b"", 2**20)
            assert not step.lost


if __name__ == "__main__":
    packs.PACK_SIZE_MAX = PACK_SIZE  # type: ignore[misc]
    trio.run(churn, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
