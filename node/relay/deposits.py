"""Takes sealed blocks from members: offers are answered with what is lacking, puts are stored.

    opener      OpenDeposits, then Offer, Put, List, Drop
    relay       Depot,        then Lacking, Stored, Listed

An offer that finds something lacking holds one of `Limits.uploads_max` places until its blocks
have come, which bounds the memory of all uploads together. Blocks are stored as they come, a few at
a time; `Stored` is said once all of the offer's are durable. Every step may be repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import trio

from crdt.deposit import sealed_hash, verify_deposit, verify_drop
from crdt.errors import PeerError
from crdt.ids import BlockId, DeviceId
from crdt.roster_ops import Role
from node.relay.hosted import HostedFolder
from node.relay.limits import Counters, Limits
from node.relay.rate import Rate
from node.relay.storage import Deposit, Storage, StorageFullError
from transport.frames import FrameDecoder, encode
from transport.link import Stream
from transport.messages import Message
from transport.relay_messages import (
    LISTED_MAX,
    Depot,
    Drop,
    Lacking,
    List,
    Listed,
    Offer,
    OpenDeposits,
    Put,
    Stored,
)

logger = logging.getLogger("shoal.relay")

FLUSH_SIZE: Final = 1024 * 1024  # bytes of blocks that are stored together
FULL_DISK: Final = "the relay's disk is full"


class DepositStream:
    """One deposit stream."""

    def __init__(
        self,
        hosted: HostedFolder,
        storage: Storage,
        peer: DeviceId,
        stream: Stream,
        decoder: FrameDecoder,
        *,
        limits: Limits,
        counters: Counters,
        places: trio.CapacityLimiter,
        rate: Rate,
        time_s: Callable[[], int],
    ) -> None:
        self._hosted = hosted
        self._storage = storage
        self._peer = peer
        self._stream = stream
        self._decoder = decoder
        self._limits = limits
        self._counters = counters
        self._places = places
        self._rate = rate
        self._time_s = time_s
        self._inbox: list[Message] = []

    async def run(self, opening: OpenDeposits, first: Sequence[Message]) -> None:
        """Serve until the stream ends, or until something stored is there no more: then members ask
        anew.

        Raises:
            PeerError: the peer broke the protocol.
            LinkClosedError: the stream or the connection is gone.
        """
        self._inbox += first
        lost = self._hosted.gone.count
        continues = await self._storage.continues(self._hosted.id, opening.place)
        await self._send(Depot(await self._storage.place(self._hosted.id), continues))

        async def until_lost() -> None:
            await self._hosted.gone.wait_past(lost)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_lost)
            while (message := await self._next()) is not None:
                match message:
                    case Offer():
                        await self._take_offer(message)
                    case List(after=after):
                        found = await self._storage.listed(self._hosted.id, after, LISTED_MAX)
                        await self._send(Listed(tuple(found)))
                    case Drop():
                        await self._take_drop(message)
                    case _:
                        raise PeerError(f"sent {type(message).__name__} without an offer")
            nursery.cancel_scope.cancel()

    async def _next(self) -> Message | None:
        while not self._inbox:
            data = await self._stream.receive_some()
            if not data:
                self._decoder.finish()
                return None
            self._inbox += self._decoder.feed(data)
        return self._inbox.pop(0)

    async def _send(self, message: Message) -> None:
        await self._stream.send_all(encode(message))

    async def _take_offer(self, offer: Offer) -> None:
        lacking = await self._storage.lacking(self._hosted.id, offer.blocks)
        if not lacking:
            await self._send(Lacking(offer.request, ()))
            return
        full = await self._why_full()
        if full:
            self._counters.deposits_over_quota_total += 1
            await self._send(Lacking(offer.request, (), full))
            return
        async with self._places:
            with trio.move_on_after(self._limits.upload_s) as patience:
                wanted = tuple(block for block in offer.blocks if block in lacking)
                await self._send(Lacking(offer.request, wanted))
                await self._take_blocks(offer.request, set(wanted))
        if patience.cancelled_caught:
            raise PeerError("did not bring the blocks that it had offered")

    async def _take_blocks(self, request: int, lacking: set[BlockId]) -> None:
        batch: list[Deposit] = []
        full = ""
        while lacking:
            message = await self._next()
            if message is None:
                break
            if not isinstance(message, Put) or message.request != request:
                raise PeerError("sent something else than the blocks that it had offered")
            if message.block not in lacking:
                raise PeerError(f"sent block {message.block}, which was not lacking")
            lacking.discard(message.block)
            if message.sealed:
                batch.append(self._checked(message))
                await self._rate.spend(len(message.sealed))
            if sum(len(one.sealed) for one in batch) >= FLUSH_SIZE:
                full = full or await self._store(batch)
                batch = []
        full = full or await self._store(batch)
        place = await self._storage.place(self._hosted.id)
        await self._send(Stored(request, place, full))

    def _checked(self, put: Put) -> Deposit:
        digest = sealed_hash(put.sealed)
        if not verify_deposit(self._peer, self._hosted.id, put.block, digest, put.signature):
            self._counters.deposits_refused_total += 1
            raise PeerError(f"did not sign for block {put.block}")
        return Deposit(put.block, put.sealed, digest, self._peer, put.signature)

    async def _store(self, batch: list[Deposit]) -> str:
        """Store; returns why it could not be."""
        if not batch:
            return ""
        full = await self._why_full(sum(len(one.sealed) for one in batch))
        if not full:
            try:
                await self._storage.put(self._hosted.id, batch)
            except StorageFullError as error:
                logger.warning("blocks were not stored: %s", error)
                full = FULL_DISK
        if full:
            self._counters.deposits_over_quota_total += 1
            return full
        self._counters.blocks_stored_total += len(batch)
        self._counters.bytes_stored_total += sum(len(one.sealed) for one in batch)
        await self._hosted.refresh_usage()
        self._hosted.deposited.ring()
        return ""

    async def _why_full(self, size: int = 0) -> str:
        """Why so much more cannot be taken; empty if it can."""
        if self._hosted.usage.total_bytes + size > self._limits.folder_size_max:
            return "the folder's quota is used up"
        used = (await self._storage.usage_by_device(self._hosted.id)).get(self._peer, 0)
        if used + size > self._limits.device_size_max:
            return "this device's quota is used up"
        return ""

    async def _take_drop(self, drop: Drop) -> None:
        hosted = self._hosted
        role = hosted.role(self._peer)
        if role not in {Role.OWNER, Role.EDITOR}:
            raise PeerError("dropped blocks, which its role does not allow")
        if not verify_drop(self._peer, hosted.id, drop.have, drop.blocks, drop.signature):
            raise PeerError("did not sign for what it dropped")
        now_s = self._time_s()
        self._counters.drops_total += await hosted.drop(drop.blocks, drop.have, now_s=now_s)
