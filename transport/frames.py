"""Messages as bytes of a stream, and back.

    frame      length (4 bytes, big-endian) | type (1 byte) | body
    body       canonical msgpack map of `length` bytes

Sans-IO: bytes in, messages out, nothing waits. `transport.messages` has the messages.

Rules:
1. Length and type stand before the body, and the body's limit follows from the type alone, so an
   oversized frame is refused before a byte of its body is kept.
2. A decoder knows which types its stream may carry *now*. At first, on an accepted stream, these
   are the openers (1 KiB each); the opener decides what may follow. Everything else is refused by
   its type byte.
3. Types of 128 and above are optional: one that we do not know is skipped, up to its limit. Below,
   an unknown type is refused. Unknown fields in a known message are ignored.
4. Anything wrong raises `PeerError` (`VersionError` for another protocol version), and the decoder
   stays broken: there is no way to find the next frame of somebody who breaks the rules.

Memory is bounded by one frame's limit and the chunk that was fed.
"""

from __future__ import annotations

from typing import Final

from crdt.codec import pack, unpack
from crdt.errors import PeerError
from transport.admission_messages import Pake, ThisFolder, WhichFolder, Whispered
from transport.keeps import Keeps
from transport.messages import (
    Ack,
    Admitted,
    Block,
    Bye,
    Entries,
    Have,
    Hello,
    Join,
    Locate,
    Located,
    Message,
    Missing,
    OpenBlocks,
    Pieces,
    Refused,
    Want,
)
from transport.relay_messages import (
    Depot,
    Drop,
    Here,
    Host,
    Hosting,
    Lacking,
    List,
    Listed,
    Notice,
    Offer,
    OpenDeposits,
    Put,
    Seen,
    Stored,
)

HEADER_SIZE: Final = 5
OPTIONAL_TYPE_MIN: Final = 128
OPTIONAL_SIZE_MAX: Final = 64 * 1024  # bytes of a message that we do not know; skipped, not kept

MessageType = type[Message]

CONTROL: Final[frozenset[MessageType]] = frozenset(
    {Hello, Have, Entries, Ack, Bye, Notice, Seen, Keeps}
)
"""What a control stream carries, either way."""
WANTS: Final[frozenset[MessageType]] = frozenset({Want, Locate})
"""What a block stream carries from its opener, once open."""
BLOCKS: Final[frozenset[MessageType]] = frozenset({Block, Pieces, Missing, Located, Here})
"""What a block stream carries to its opener."""
ADMISSION: Final[frozenset[MessageType]] = frozenset(
    {Admitted, Refused, Pake, Whispered, ThisFolder}
)
"""What a join stream carries to its opener."""
HOSTING: Final[frozenset[MessageType]] = frozenset({Hosting, Refused})
"""What a hosting stream carries to its opener."""
DEPOSITS: Final[frozenset[MessageType]] = frozenset({Offer, Put, Drop, List})
"""What a deposit stream carries from its opener, once open."""
RECEIPTS: Final[frozenset[MessageType]] = frozenset({Depot, Lacking, Stored, Listed, Refused})
"""What a deposit stream carries to its opener."""
OPENERS: Final[frozenset[MessageType]] = frozenset(
    {Hello, OpenBlocks, Join, Host, OpenDeposits, Pake, WhichFolder}
)
"""What an accepted stream begins with."""

_FOLLOWING: Final[dict[MessageType, frozenset[MessageType]]] = {
    Hello: CONTROL,
    OpenBlocks: WANTS,
    Join: frozenset(),
    Host: frozenset(),
    Pake: frozenset({Pake}),
    WhichFolder: frozenset(),
    OpenDeposits: DEPOSITS,
}
_TYPES: Final[dict[int, MessageType]] = {
    kind.type: kind
    for kind in CONTROL | WANTS | BLOCKS | ADMISSION | OPENERS | HOSTING | DEPOSITS | RECEIPTS
}


def encode(message: Message) -> bytes:
    """The frame of `message`.

    Raises:
        ValueError: larger than its type allows; our own mistake.
    """
    body = pack(message.to_wire())
    if len(body) > message.size_max:
        raise ValueError(f"{type(message).__name__} takes {len(body)} bytes, too many")
    return len(body).to_bytes(4, "big") + bytes([message.type]) + body


class FrameDecoder:
    """Turns one stream's bytes into messages, whatever the pieces they come in."""

    def __init__(self, expected: frozenset[MessageType] = OPENERS) -> None:
        """Args: `expected` is what the stream may carry, one of the sets above. With the openers,
        what follows is decided by the one that comes.
        """
        self._expected = expected
        self._opening = expected is OPENERS
        self._buffer = bytearray()
        self._skip = 0  # bytes of an optional message still to come
        self._broken: PeerError | None = None

    @property
    def in_frame(self) -> bool:
        """True in the middle of a frame: the stream must not end here."""
        return bool(self._buffer) or self._skip > 0

    def feed(self, data: bytes) -> list[Message]:
        """Take in the next bytes; return the messages that are complete with them.

        Raises:
            PeerError: not the protocol; none of this chunk's messages is returned.
        """
        if self._broken is not None:
            raise self._broken
        try:
            return self._feed(data)
        except PeerError as error:
            self._broken = error
            self._buffer.clear()
            raise

    def finish(self) -> None:
        """The stream has ended. Raises PeerError in the middle of a frame."""
        if self.in_frame:
            raise PeerError("ended a stream in the middle of a message")

    def _feed(self, data: bytes) -> list[Message]:
        buffer, messages, at = self._buffer, list[Message](), 0
        buffer += data
        while True:
            skipped = min(self._skip, len(buffer) - at)
            self._skip -= skipped
            at += skipped
            if len(buffer) - at < HEADER_SIZE:
                break
            size, kind = int.from_bytes(buffer[at : at + 4], "big"), buffer[at + 4]
            message_type = self._check_header(size, kind)
            if message_type is None:
                self._skip = size
                at += HEADER_SIZE
                continue
            end = at + HEADER_SIZE + size
            if len(buffer) < end:
                break
            body = bytes(memoryview(buffer)[at + HEADER_SIZE : end])
            messages.append(_parse(message_type, body))
            at = end
            if self._opening:
                self._opening = False
                self._expected = _FOLLOWING[message_type]
        del buffer[:at]
        return messages

    def _check_header(self, size: int, kind: int) -> MessageType | None:
        """The message's type; None for one to skip."""
        message_type = _TYPES.get(kind)
        if message_type is None and kind >= OPTIONAL_TYPE_MIN and not self._opening:
            if size > OPTIONAL_SIZE_MAX:
                raise PeerError(f"sent an optional message of {size} bytes, which is too large")
            return None
        if message_type is None or message_type not in self._expected:
            raise PeerError(f"sent a message of type {kind} where none may be")
        if size > message_type.size_max:
            raise PeerError(f"sent a {message_type.__name__} of {size} bytes, which is too large")
        return message_type


def _parse(message_type: MessageType, body: bytes) -> Message:
    try:
        wire = unpack(body, size_max=message_type.size_max)
        if isinstance(wire, dict):
            return message_type.from_wire(wire)
        what = "it is no map"
    except ValueError as error:
        what = str(error)
    raise PeerError(f"sent a malformed {message_type.__name__}: {what}")
