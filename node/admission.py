"""What lets a device in, in its three forms, and how the other two become an invitation.

an invitation       the text or the QR code itself
a spoken code       three words; somebody on the network has the invitation that they stand for
a recovery phrase   24 words; a member or a relay says which folder they are for
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from crdt.errors import CallerError, PeerError
from crdt.ids import FolderId
from crdt.invitation import Invitation
from crdt.recovery import RecoveryPhrase
from node.ports import Random
from node.sync.admit import InvitationError, NobodyAnsweredError, ask_which_folder
from node.sync.spoken import RENDEZVOUS, ask_with_code
from transport.address import Address
from transport.link import CloseCode, DialError, Link
from transport.spoken import WORDS as CODE_WORDS
from transport.spoken import read_code

ASK_TIMEOUT_S: Final = 30.0
PAUSE_S: Final = 0.5  # between two rounds over the addresses


@dataclass(frozen=True, slots=True)
class SpokenCode:
    """Three words that a person said."""

    words: str


Ticket = Invitation | SpokenCode | RecoveryPhrase


def read_ticket(text: str) -> Ticket:
    """What a person pasted, typed or heard.

    Raises:
        CallerError: it is none of the three; says why, and never repeats it.
    """
    code = read_code(text)
    if code is not None:
        return SpokenCode(code)
    words = text.replace("-", " ").split()
    if text.strip().lower().startswith("shoal") or not all(word.isalpha() for word in words):
        return Invitation.from_text(text)
    if len(words) == CODE_WORDS:
        raise CallerError("one of these three words is in no code; say them again")
    if len(words) > CODE_WORDS:
        return RecoveryPhrase.from_text(text)
    return Invitation.from_text(text)


def announced(ticket: Ticket) -> set[FolderId]:
    """What to look for on the local network to find whoever knows the ticket."""
    match ticket:
        case Invitation():
            return {ticket.folder}
        case SpokenCode():
            return {RENDEZVOUS}
        case RecoveryPhrase():
            return set()  # the folder is not known yet: an address must be given


async def invitation_of(
    ticket: Ticket, link: Link, places: Callable[[], set[Address]], random: Random
) -> Invitation:
    """Turn a ticket into an invitation, by asking at `places` as they become known.

    Raises:
        InvitationError: the words are wrong, or nobody knows the phrase.
        NobodyAnsweredError: nobody could be asked.
    """
    if isinstance(ticket, Invitation):
        return ticket
    reasons: dict[str, str] = {}
    with trio.move_on_after(ASK_TIMEOUT_S):
        while True:
            for place in sorted(places()):
                try:
                    if isinstance(ticket, SpokenCode):
                        return await ask_with_code(link, place, ticket.words, random)
                    return await ask_which_folder(link, place, ticket)
                except DialError as error:
                    reasons[str(place)] = error.reason
                    _raise_if_unknown(ticket, error)
                except PeerError as error:
                    reasons[str(place)] = str(error)
            await trio.sleep(PAUSE_S)
    tried = "; ".join(f"{where}: {why}" for where, why in sorted(reasons.items()))
    raise NobodyAnsweredError(
        f"nobody who knows these words answered within {ASK_TIMEOUT_S:.0f} s "
        f"({tried or 'no address is known'}). Nothing was changed here. "
        + (
            "Is the code still open, and the other device on this network? Name its address with "
            if isinstance(ticket, SpokenCode)
            else "Name the address of a member or a relay of the folder with "
        )
        + "--peer HOST:PORT."
    )


def _raise_if_unknown(ticket: Ticket, error: DialError) -> None:
    """A node that was asked for a phrase and does not know it has the last word."""
    codes = {CloseCode.NOT_A_MEMBER, CloseCode.INVITATION_USED, CloseCode.INVITATION_EXPIRED}
    if isinstance(ticket, RecoveryPhrase) and error.code in codes:
        raise InvitationError(
            "the recovery phrase is not known there: it is of another folder, or was revoked. "
            "Nothing was changed here."
        )
