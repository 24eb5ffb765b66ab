"""Spoken codes between two nodes: the open one of this node, and the streams that carry it.

One code is open at a time, for a few minutes, and stands for a real invitation. While it is, a
stranger may connect to make one guess; whatever it does after our answer, the code is spent. The
invitation itself goes only to whoever had the words, and is revoked when they were wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from crdt.errors import CallerError, PeerError
from crdt.ids import FolderId
from crdt.invitation import Invitation
from crdt.seal import NONCE_SIZE, derive_key
from node.ports import Random
from node.sync.admit import InvitationError
from transport.address import Address
from transport.admission_messages import Pake, Whispered
from transport.frames import ADMISSION, FrameDecoder, encode
from transport.identity import Identity
from transport.link import CloseCode, Connection, DialError, Link, LinkClosedError, Stream
from transport.messages import Message, Refused
from transport.spoken import Guest, Host

logger = logging.getLogger("shoal.spoken")

STEP_TIMEOUT_S: Final = 10.0
OPEN_MAX_S: Final = 600.0  # a code is for two people who talk to each other now
RENDEZVOUS: Final = FolderId(derive_key("shoal v1 spoken code rendezvous", b""))
"""Announced like a folder while a code is open. The same everywhere, so it says nothing more."""


@dataclass(slots=True)
class OpenCode:
    """A code that was said, what it lets have, and what happens when it is guessed wrong."""

    code: str
    invitation: str
    until_s: float  # on trio's clock
    void: Callable[[], None]


class SpokenCodes:
    """The one open code of a node."""

    def __init__(self, identity: Identity, random: Random) -> None:
        self._identity = identity
        self._random = random
        self._open: OpenCode | None = None
        self.on_change: Callable[[], None] = lambda: None

    def open(self, code: OpenCode) -> None:
        """Take guesses at this code, and no more at an earlier one."""
        self._open = code
        self.on_change()

    @property
    def is_open(self) -> bool:
        """True while a stranger may make a guess."""
        return self._open is not None and trio.current_time() < self._open.until_s

    async def serve(self, connection: Connection) -> None:
        """Answer one guess, and end the connection."""
        with trio.move_on_after(STEP_TIMEOUT_S):
            stream = await connection.accept_stream()
            decoder = FrameDecoder()
            first = await _next(stream, decoder)
            if not isinstance(first, Pake):
                raise PeerError("a stranger may only say a code")
            if not self.is_open or self._open is None:
                await _refuse(stream, "no code is open here any more")
                return
            spent, self._open = self._open, None
            try:
                await self._finish(spent, connection, stream, decoder, first)
            finally:
                self.on_change()
            await stream.send_eof()
            await connection.wait_closed()

    async def _finish(
        self,
        code: OpenCode,
        connection: Connection,
        stream: Stream,
        decoder: FrameDecoder,
        first: Pake,
    ) -> None:
        given = False
        try:
            host = Host(
                code.code, guest=connection.peer, inviter=self._identity.device,
                entropy=self._random.bytes,
            )  # fmt: skip
            await stream.send_all(encode(Pake(host.answer(first.data))))
            proof = await _next(stream, decoder)
            nonce = self._random.bytes(NONCE_SIZE)
            if isinstance(proof, Pake):
                sealed = host.seal(proof.data, code.invitation, nonce=nonce)
                if sealed is not None:
                    given = True
                    await stream.send_all(encode(Whispered(sealed)))
                    return
            await _refuse(stream, "the words are wrong, and the code is void now")
        finally:
            if not given:
                code.void()


async def ask_with_code(link: Link, address: Address, code: str, random: Random) -> Invitation:
    """Say the code to the node at `address`; returns the invitation that it stands for.

    Raises:
        DialError: nobody there, or no code is open there.
        InvitationError: the words are wrong: this was the one guess.
        PeerError: what it answered does not hold.
    """
    guest = Identity.from_seed(random.bytes(32))
    connection = await link.dial(address, identity=guest, authorize=lambda _peer: None)
    try:
        with trio.fail_after(STEP_TIMEOUT_S):
            stream = await connection.open_stream()
            decoder = FrameDecoder(ADMISSION)
            side = Guest(code, guest=guest.device, inviter=connection.peer, entropy=random.bytes)
            await stream.send_all(encode(Pake(side.first())))
            answer = await _next(stream, decoder)
            if not isinstance(answer, Pake):
                raise DialError("no code is open there")
            await stream.send_all(encode(Pake(side.prove(answer.data))))
            match await _next(stream, decoder):
                case Whispered(sealed=sealed):
                    return Invitation.from_text(side.open(sealed))
                case _:
                    raise _wrong_words()
    except CallerError as error:
        raise _wrong_words() from error
    except trio.TooSlowError:
        raise DialError("the node did not answer in time") from None
    except LinkClosedError as error:
        raise DialError(str(error), error.closed.code) from None
    finally:
        with trio.CancelScope(shield=True):
            await connection.close(CloseCode.OK)


def _wrong_words() -> InvitationError:
    return InvitationError(
        "the words are not the ones that were said. Each code takes one guess, so this one is void "
        "now. Nothing was changed here; ask for a new one (`shoal invite --spoken`)."
    )


async def _next(stream: Stream, decoder: FrameDecoder) -> Message:
    while True:
        data = await stream.receive_some()
        if not data:
            raise PeerError("the conversation ended too soon")
        messages = decoder.feed(data)
        if messages:
            return messages[0]


async def _refuse(stream: Stream, why: str) -> None:
    await stream.send_all(encode(Refused(int(CloseCode.INVITATION_USED), why)))
