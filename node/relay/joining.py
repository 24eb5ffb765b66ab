"""Admits a device with an invitation while all who could have are asleep.

The relay carries the join into its own log, as any member may. What the new device gets is the
roster; its keys are sealed to the invitation, which the relay cannot open.
"""

from __future__ import annotations

import logging

from crdt.errors import PeerError
from crdt.ids import DeviceId
from crdt.roster import InvitationState
from node.ports import Clock
from node.relay.hosted import HostedFolder
from node.sync.admit import roster_messages
from transport.frames import encode
from transport.link import CloseCode, Stream
from transport.messages import Join, Refused, plain_reason

logger = logging.getLogger("shoal.relay")

_CODES = {
    InvitationState.USED: CloseCode.INVITATION_USED,
    InvitationState.CLOSED: CloseCode.INVITATION_USED,
    InvitationState.EXPIRED: CloseCode.INVITATION_EXPIRED,
}


async def serve_join(
    hosted: HostedFolder, peer: DeviceId, stream: Stream, join: Join, clock: Clock
) -> bool:
    """Answer a join; True when the device is a member now.

    Raises:
        PeerError: it is for another invitation than the connection's.
    """
    if join.op.key != peer:
        raise PeerError("the join is for another invitation than the connection's")
    now_s = clock.wall_ns() / 1e9
    try:
        hosted.roster.check_join(join.op, now_s)
    except PeerError as error:
        state = hosted.roster.invitation_state(peer, now_s)
        code = _CODES.get(state, CloseCode.NOT_A_MEMBER)
        await stream.send_all(encode(Refused(int(code), plain_reason(str(error)))))
        return False
    if hosted.roster.role(join.op.device) is None and not hosted.own_log_known:
        reason = "the relay was restored from a backup and waits for a member; try again later"
        await stream.send_all(encode(Refused(int(CloseCode.TOO_BUSY), reason)))
        return False
    if hosted.roster.role(join.op.device) is None:
        await hosted.write_roster([join.op])
        logger.info("admitted device %s", join.op.device.short)
    if hosted.roster.role(join.op.device) is None:
        reason = "the relay could not write it down; try again later"
        await stream.send_all(encode(Refused(int(CloseCode.TOO_BUSY), reason)))
        return False
    for message in roster_messages(hosted.roster_bytes):
        await stream.send_all(encode(message))
    return True
