"""Joining a folder, both sides.

The joining device dials with the invitation's key pair as its TLS identity, so that a stranger gets
no application byte, and shows the join operation that both keys signed. Whoever admits it writes
that into its own log and answers with all roster entries. The joining device then checks that
these lead from the folder's id to the device that answered, and to itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from crdt.entry import ENTRY_SIZE_MAX, Entry
from crdt.errors import CallerError, PeerError
from crdt.ids import DeviceId
from crdt.invitation import Invitation
from crdt.recovery import RecoveryPhrase
from crdt.roster import InvitationState, Roster
from crdt.roster_make import join_op
from node.ports import Clock
from transport.address import Address
from transport.admission_messages import ThisFolder, WhichFolder
from transport.frames import ADMISSION, FrameDecoder, encode
from transport.identity import Identity
from transport.link import CloseCode, Connection, DialError, Link, LinkClosedError
from transport.messages import ENTRIES_MAX, Admitted, Join, Message, Refused, plain_reason

if TYPE_CHECKING:
    from node.sync.engine import FolderEngine

logger = logging.getLogger("shoal.join")

ANSWER_TIMEOUT_S: Final = 10.0
ROSTER_ENTRIES_MAX: Final = 100_000  # a roster of a thousand devices with all their history
BATCH_SIZE: Final = 1024 * 1024  # bytes of roster entries a message
_STATE_CODES: Final = {
    InvitationState.USED: CloseCode.INVITATION_USED,
    InvitationState.CLOSED: CloseCode.INVITATION_USED,
    InvitationState.EXPIRED: CloseCode.INVITATION_EXPIRED,
}


class InvitationError(CallerError):
    """The invitation does not let us in. Nothing was changed here."""

    exit_code = 11


class NobodyAnsweredError(CallerError):
    """No member of the folder could be reached."""

    exit_code = 14


async def serve_join(connection: Connection, engine: FolderEngine, clock: Clock) -> None:
    """Admit the device behind an invitation's connection, or refuse it with a reason."""
    with trio.move_on_after(ANSWER_TIMEOUT_S):
        stream = await connection.accept_stream()
        decoder = FrameDecoder()
        while not (messages := decoder.feed(await stream.receive_some())):
            pass
        request = messages[0]
        if isinstance(request, WhichFolder):
            await stream.send_all(encode(ThisFolder(engine.folder.id)))
            await stream.send_eof()
            await connection.wait_closed()
            return
        if not isinstance(request, Join) or request.folder != engine.folder.id:
            raise PeerError("an invitation's connection may only ask to join its folder")
        if request.op.key != connection.peer:
            raise PeerError("the join is for another invitation than the connection's")
        now_s = clock.wall_ns() / 1e9
        try:
            engine.folder.roster.check_join(request.op, now_s)
        except PeerError as error:
            state = engine.folder.roster.invitation_state(connection.peer, now_s)
            code = _STATE_CODES.get(state, CloseCode.NOT_A_MEMBER)
            await stream.send_all(encode(Refused(int(code), plain_reason(str(error)))))
        else:
            if engine.folder.roster.role(request.op.device) is None:
                engine.folder.commit_roster([request.op])
                logger.info("admitted device %s (%s)", request.op.device.short, request.op.name)
                engine.roster_changed()
            for message in roster_messages(engine.folder.roster_entries):
                await stream.send_all(encode(message))
        await stream.send_eof()
        await connection.wait_closed()


def roster_messages(entries: Sequence[bytes]) -> list[Admitted]:
    """The answer to a join: roster entries in as many messages as they need."""
    batch: list[bytes] = []
    size = 0
    batches: list[tuple[bytes, ...]] = []
    for entry in entries:
        if batch and (size + len(entry) > BATCH_SIZE or len(batch) >= ENTRIES_MAX):
            batches.append(tuple(batch))
            batch, size = [], 0
        batch.append(entry)
        size += len(entry)
    batches.append(tuple(batch))
    return [Admitted(part, more=number < len(batches)) for number, part in enumerate(batches, 1)]


async def ask_to_join(
    link: Link, address: Address, invitation: Invitation, identity: Identity, name: str
) -> list[bytes]:
    """Join by way of the node at `address`; returns the checked roster entries.

    Raises:
        DialError: nobody there, or it does not know the invitation.
        InvitationError: it refused, and said why.
        PeerError: what it answered does not hold.
    """
    guest = Identity.from_seed(invitation.secret)
    connection = await link.dial(address, identity=guest, authorize=lambda _peer: None)
    try:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            stream = await connection.open_stream()
            op = join_op(invitation.folder, invitation.secret, identity.seed, name)
            await stream.send_all(encode(Join(invitation.folder, op)))
            entries = await _receive_roster(stream.receive_some)
    except trio.TooSlowError:
        raise DialError("the node did not answer in time") from None
    except LinkClosedError as error:
        raise DialError(str(error), error.closed.code) from None
    finally:
        with trio.CancelScope(shield=True):
            await connection.close(CloseCode.OK)
    _check_roster(entries, invitation, identity.device, connection.peer)
    return entries


async def ask_which_folder(link: Link, address: Address, phrase: RecoveryPhrase) -> Invitation:
    """Find the folder that a recovery phrase is for, at a member or a relay.

    Raises:
        DialError: nobody there, or the phrase is not known there.
        PeerError: it named another folder.
    """
    guest = Identity.from_seed(phrase.seed)
    connection = await link.dial(address, identity=guest, authorize=lambda _peer: None)
    try:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            stream = await connection.open_stream()
            await stream.send_all(encode(WhichFolder()))
            decoder = FrameDecoder(ADMISSION)
            messages: list[Message] = []
            while not messages:
                data = await stream.receive_some()
                if not data:
                    raise PeerError("the node ended the conversation without an answer")
                messages = decoder.feed(data)
            match messages[0]:
                case ThisFolder(folder=folder) if phrase.is_of(folder):
                    place = (address.host, address.port)
                    return Invitation(folder, phrase.seed, connection.peer, (place,))
                case _:
                    raise PeerError("the node named another folder than the phrase is for")
    except trio.TooSlowError:
        raise DialError("the node did not answer in time") from None
    except LinkClosedError as error:
        raise DialError(str(error), error.closed.code) from None
    finally:
        with trio.CancelScope(shield=True):
            await connection.close(CloseCode.OK)


async def _receive_roster(receive: object) -> list[bytes]:
    entries: list[bytes] = []
    decoder = FrameDecoder(frozenset({Admitted, Refused}))
    while True:
        data = await receive()  # type: ignore[operator]
        if not data:
            raise PeerError("the node ended the conversation without an answer")
        for message in decoder.feed(data):
            match message:
                case Admitted(entries=some, more=more):
                    entries += some
                    if len(entries) > ROSTER_ENTRIES_MAX:
                        raise PeerError("the roster is too long")
                    if not more:
                        return entries
                case Refused(code=CloseCode.NOT_A_MEMBER, reason=reason):
                    raise DialError(reason, CloseCode.NOT_A_MEMBER)
                case Refused(code=CloseCode.TOO_BUSY, reason=reason):
                    raise InvitationError(
                        f"the invitation was not accepted now: {reason}. Nothing was changed."
                    )
                case Refused(reason=reason):
                    raise InvitationError(
                        f"the invitation was not accepted: {reason}. Nothing was changed; ask for "
                        "a new one (`shoal invite`)."
                    )
                case _:
                    raise PeerError("the node answered with something else than a roster")


def _check_roster(
    data: Sequence[bytes], invitation: Invitation, device: DeviceId, admitter: DeviceId
) -> None:
    """The roster must lead from the folder's id to us and to whoever answered."""
    entries = []
    for one in data:
        if len(one) > ENTRY_SIZE_MAX:
            raise PeerError("a roster entry is too large")
        try:
            entry = Entry.from_bytes(one)
        except ValueError as error:
            raise PeerError(f"a roster entry is malformed: {error}") from None
        if entry.header.folder != invitation.folder or not entry.verify_signature():
            raise PeerError("a roster entry is forged")
        entries.append(entry)
    roster = Roster.fold(invitation.folder, entries)
    if roster.role(admitter) is None:
        raise PeerError("the node that answered is not a member of the folder")
    if roster.role(device) is None:
        raise PeerError("the node that answered did not admit this device")
