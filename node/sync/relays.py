"""A member's dealings with relays: where they are, and how a folder is brought to one.

A relay's *name* in the roster is its address, HOST:PORT: so every member, a new one too, knows from
the roster alone where to find it, and an owner's signature stands behind it.
"""

from __future__ import annotations

from typing import Final

import trio

from crdt.errors import CallerError, PeerError
from crdt.ids import DeviceId, FolderId
from crdt.roster import Roster
from crdt.roster_ops import Role
from transport.address import Address
from transport.frames import HOSTING, FrameDecoder, encode
from transport.link import CloseCode, Connection, DialError, Link, LinkClosedError
from transport.messages import Refused
from transport.relay_messages import Host, Hosting

ANSWER_TIMEOUT_S: Final = 15.0


class RelayError(CallerError):
    """The relay does not take the folder, or cannot be reached. Nothing was changed."""

    exit_code = 16


def relay_addresses(roster: Roster) -> dict[DeviceId, Address]:
    """Where the folder's relays are."""
    found = {}
    for device, member in roster.members.items():
        if member.role is Role.RELAY:
            try:
                found[device] = Address.from_text(member.name)
            except CallerError:
                continue  # admitted by an invitation: it comes to us, or is found otherwise
    return found


async def bring_folder(link: Link, address: Address, folder: FolderId, token: str) -> DeviceId:
    """Ask the relay at `address` to keep the folder; returns the relay's device.

    Raises:
        RelayError: nobody is there, or it says no.
    """
    try:
        connection = await link.dial(address, authorize=lambda _: None)
    except DialError as error:
        why = error.reason if error.code is None else _WHY.get(error.code, error.reason)
        raise _refused(address, why) from None
    try:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            return await _ask(connection, address, folder, token)
    except trio.TooSlowError:
        raise _refused(address, "it did not answer in time") from None
    except LinkClosedError as error:
        raise _refused(address, str(error)) from None
    except PeerError as error:
        raise _refused(address, f"whoever is there is no relay ({error})") from None
    finally:
        with trio.CancelScope(shield=True):
            await connection.close(CloseCode.OK)


async def _ask(connection: Connection, address: Address, folder: FolderId, token: str) -> DeviceId:
    stream = await connection.open_stream()
    await stream.send_all(encode(Host(folder, token)))
    decoder = FrameDecoder(HOSTING)
    while data := await stream.receive_some():
        for message in decoder.feed(data):
            match message:
                case Hosting():
                    return connection.peer
                case Refused(reason=reason):
                    raise _refused(address, reason)
                case _:
                    pass
    raise PeerError("it gave no answer")


_WHY: Final = {
    CloseCode.NOT_A_MEMBER: "it takes folders of certain owners only, or it is no relay",
    CloseCode.TOO_BUSY: "it is too busy; try again later",
}


def _refused(address: Address, why: str) -> RelayError:
    return RelayError(
        f"the relay at {address} does not take the folder: {why}. Nothing was changed."
    )
