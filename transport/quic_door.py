"""What happens to a datagram that belongs to no connection: let in, answer, or drop.

Sans-IO. An attacker can send any number of these from invented addresses, so nothing is kept
here, and no answer is larger than what it answers. Under load the sender must first prove its
address with a Retry token (RFC 9000, section 8.1).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from aioquic.buffer import Buffer  # type: ignore[attr-defined] # re-exported
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler

from transport.quic_core import CONNECTION_ID_SIZE
from transport.quic_udp import Sockaddr

_VERSIONS: Final = [int(QuicProtocolVersion.VERSION_1)]
_LONG_HEADER: Final = 0x80  # the top bit of a packet's first byte


@dataclass(frozen=True, slots=True)
class Admit:
    """Start a connection with these ids."""

    original_destination_cid: bytes
    retry_source_cid: bytes | None
    destination_cid: bytes


def destination_cid(data: bytes) -> bytes:
    """The connection id that a datagram is addressed to; b"" if it is too short to have one."""
    if not data:
        return b""
    if not data[0] & _LONG_HEADER:
        return data[1 : 1 + CONNECTION_ID_SIZE]
    return data[6 : 6 + data[5]] if len(data) > 5 else b""


class Door:
    """Judges first datagrams."""

    def __init__(self) -> None:
        self._tokens = QuicRetryTokenHandler()

    def judge(
        self, data: bytes, sender: Sockaddr, *, validate: bool, now: float
    ) -> Admit | bytes | None:
        """Judge a datagram for an unknown connection id.

        Args:
            data: The datagram.
            sender: Where it claims to come from.
            validate: Whether the sender has to prove that address first.
            now: Seconds, monotonic.

        Returns:
            How to start the connection; or the answer to send back; or None: drop it.
        """
        header = _header(data)
        if header is None or header.version is None:
            return None
        if header.version not in _VERSIONS:
            return encode_quic_version_negotiation(
                source_cid=header.destination_cid,
                destination_cid=header.source_cid,
                supported_versions=_VERSIONS,
            )
        # RFC 9000, section 7.2: the id that a client makes up has at least 8 bytes.
        if header.packet_type is not QuicPacketType.INITIAL or len(header.destination_cid) < 8:
            return None
        if header.token:
            return self._redeem(header, sender, now)
        if validate:
            return self._retry(header, header.version, sender, now)
        return Admit(header.destination_cid, None, header.destination_cid)

    def _redeem(self, header: QuicHeader, sender: Sockaddr, now: float) -> Admit | None:
        try:
            original = self._tokens.validate_token(
                address=sender, destination_cid=header.destination_cid, token=header.token, now=now
            )
        except ValueError:
            return None
        return Admit(original, header.destination_cid, header.destination_cid)

    def _retry(self, header: QuicHeader, version: int, sender: Sockaddr, now: float) -> bytes:
        source_cid = os.urandom(CONNECTION_ID_SIZE)
        return encode_quic_retry(
            version=version,
            source_cid=source_cid,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=self._tokens.create_token(
                address=sender,
                original_destination_connection_id=header.destination_cid,
                retry_source_connection_id=source_cid,
                now=now,
            ),
        )


def _header(data: bytes) -> QuicHeader | None:
    """The header of a datagram that may start a connection."""
    # One this small cannot (RFC 9000, section 14.1), and any answer would make us an amplifier.
    if len(data) < SMALLEST_MAX_DATAGRAM_SIZE or not data[0] & _LONG_HEADER:
        return None
    try:
        header = pull_quic_header(Buffer(data=data), host_cid_length=CONNECTION_ID_SIZE)
    except ValueError:
        return None
    # Answering a Version Negotiation with another would let two nodes do so for ever.
    return None if header.packet_type is QuicPacketType.VERSION_NEGOTIATION else header
