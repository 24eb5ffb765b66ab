"""Keeps a peer to its credit: what it asked for on one block stream and has not got yet.

Sans-IO. Answer a few blocks at a time, in order, and let the stream's back-pressure set the pace:
then the memory taken is theirs, whatever the peer asks for.
"""

from __future__ import annotations

import itertools
from collections import deque

from crdt.errors import PeerError
from crdt.ids import BlockId
from transport.fields import WANT_MAX
from transport.messages import Want


class Supplier:
    """The far end of a `Fetcher`, for one block stream."""

    def __init__(self) -> None:
        self._owed: deque[tuple[int, BlockId, bytes]] = deque()

    def wanted(self, want: Want) -> None:
        """Take in a request. Raises PeerError when more is outstanding than a peer may ask for."""
        if len(self._owed) + len(want.blocks) > WANT_MAX:
            raise PeerError(f"asked for more than {WANT_MAX} blocks at once")
        self._owed += ((want.request, block, want.held) for block in want.blocks)

    def next(self) -> tuple[int, BlockId] | None:
        """The request and block to answer now, with `Block` or `Missing`, then call `answered`."""
        return self._owed[0][:2] if self._owed else None

    def held(self) -> bytes:
        """Hashes of what the asker says to have of the block to answer now; mostly none."""
        return self._owed[0][2] if self._owed else b""

    def first(self, count: int) -> list[tuple[int, BlockId]]:
        """Like `next`: up to `count` that are owed, in order; one of which something is held comes
        alone.
        """
        if self.held():
            count = 1
        some = itertools.islice(self._owed, count)
        plain = itertools.takewhile(lambda owed: count == 1 or not owed[2], some)
        return [owed[:2] for owed in plain]

    def answered(self, count: int = 1) -> None:
        """The answers to the first `count` have been given to the stream, all of them."""
        for _ in range(count):
            self._owed.popleft()
