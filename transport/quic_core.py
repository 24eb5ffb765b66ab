# ruff: noqa: SLF001
"""aioquic's sans-IO connection, bent to what Shoal needs. No socket, no clock, no tasks.

Every use of aioquic's private names is in this file, and `tests/transport/test_canary.py` watches
each of them. What differs from stock:

- Mutual TLS with Ed25519 only; no session tickets, hence no resumption and no 0-RTT.
- Receive windows follow what the application has consumed. Stock doubles them on receipt, so a
  fast sender could fill the memory of a slow receiver.
- The peer may open a stream for each one that *our application* is done with, not for each that
  the wire is done with, so that nobody piles up streams we never looked at.
- Handshake messages have a size limit (stock buffers a ClientHello of up to 16 MiB).
- Keys are updated long before AES-GCM's limit, which stock does not count.
- Pacing allows bursts that last as long as the kernel's timers are coarse.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    Limit,
    QuicConnection,
    QuicConnectionError,
    QuicConnectionState,
)
from aioquic.quic.packet import QuicErrorCode, QuicProtocolVersion
from aioquic.quic.recovery import QuicPacketPacer
from aioquic.tls import AlertDescription, CipherSuite, Epoch, Group, SignatureAlgorithm

from crdt.errors import PeerError
from transport.identity import Identity, peer_device
from transport.link import (
    HANDSHAKE_TIMEOUT_S,
    STREAMS_MAX,
    VANISHED_AFTER_S,
    CloseCode,
    Closed,
)

if TYPE_CHECKING:
    from aioquic.buffer import Buffer  # type: ignore[attr-defined] # re-exported
    from aioquic.quic.connection import QuicReceiveContext
    from aioquic.quic.packet_builder import QuicPacketBuilder
    from aioquic.quic.recovery import QuicPacketSpace
    from aioquic.quic.stream import QuicStream

    from crdt.ids import DeviceId

ALPN: Final = "shoal/1"
CRYPTO_SIZE_MAX: Final = 16 * 1024  # bytes of handshake an epoch; ours take about 700
CONNECTION_ID_SIZE: Final = 8  # bytes; 2**64 is enough against guessing and collisions
BURST_S: Final = 0.002  # epoll sleeps in whole milliseconds: what is due by then goes at once
BURST_PACKETS_MAX: Final = 128  # 186 KB; below the receive buffer that Linux gives by default
ACK_NOW_PACKETS: Final = 16  # received without an acknowledgement: do not wait for the timer


@dataclass(frozen=True, slots=True)
class QuicOptions:
    """Sizes and limits of a `QuicLink`. Sizes are bytes."""

    max_datagram_size: int = 1452  # fills an MTU of 1500 over IPv6: 1500 - 40 - 8
    stream_window: int = 4 * 2**20  # received and not consumed: 1 Gbit/s at 32 ms
    connection_window: int = 16 * 2**20  # the same over all its streams: bounds memory a peer
    stream_send_buffer: int = 2**20  # unacknowledged; `send_all` waits beyond
    connection_send_buffer: int = 4 * 2**20
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S
    half_open_retry: int = 8  # accepted handshakes in progress from which addresses are validated
    half_open_max: int = 64  # 64 KB each, before anybody is known
    connections_max: int = 512
    key_update_packets: int = 2**21  # sent under one key; AES-GCM allows 2**23 (RFC 9001, 6.6)


def quic_configuration(
    identity: Identity, options: QuicOptions, *, is_client: bool
) -> QuicConfiguration:
    """What both sides agree on; the certificate is `identity`'s."""
    return QuicConfiguration(
        alpn_protocols=[ALPN],
        certificate=identity.certificate,
        cipher_suites=[CipherSuite.AES_128_GCM_SHA256, CipherSuite.CHACHA20_POLY1305_SHA256],
        congestion_control_algorithm="cubic",
        connection_id_length=CONNECTION_ID_SIZE,
        # The driver notices silence itself, as this timer starts anew with every ping we send.
        idle_timeout=2 * VANISHED_AFTER_S,
        is_client=is_client,
        max_data=options.connection_window,
        max_datagram_size=options.max_datagram_size,
        max_stream_data=options.stream_window,
        private_key=identity.private_key,
        supported_versions=[QuicProtocolVersion.VERSION_1],
        verify_mode=ssl.CERT_NONE,  # there is no authority; the key itself is checked
    )


class QuicCore(QuicConnection):
    """One connection's state machine."""

    def __init__(
        self,
        identity: Identity,
        options: QuicOptions,
        *,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        """A server's, with the connection ids that its first Initial gave; else a client's."""
        super().__init__(
            configuration=quic_configuration(
                identity, options, is_client=original_destination_connection_id is None
            ),
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        self._options = options
        self._uncredited = 0
        self._phase_start = 0
        self._peer_streams = _StreamLimit(self._local_max_streams_bidi, STREAMS_MAX)
        self._local_max_streams_bidi = self._peer_streams
        # Only the accepting side sends on a unidirectional stream: one, its greeting.
        self._local_max_streams_uni = _StreamLimit(
            self._local_max_streams_uni, 1 if self._is_client else 0
        )
        self._loss._pacer = _Pacer(max_datagram_size=options.max_datagram_size)

    # --- whom we talk to, and how it ended

    def proven_peer(self) -> DeviceId:
        """The key that the peer proved; only after the handshake.

        Raises:
            PeerError: no certificate, more than one, or not a self-signed Ed25519 one.
        """
        certificate = self.tls._peer_certificate
        if certificate is None or self.tls._peer_certificate_chain:
            raise PeerError("the peer must show exactly one certificate")
        try:
            return peer_device(certificate)
        except ValueError as error:
            raise PeerError(str(error)) from None

    @property
    def has_begun(self) -> bool:
        """Whether any packet of the peer could be decrypted."""
        return self._state is not QuicConnectionState.FIRSTFLIGHT

    @property
    def terminated(self) -> bool:
        """Nothing more will be sent, and no timer is needed."""
        return self._state is QuicConnectionState.TERMINATED

    def ending(self) -> Closed | None:
        """How the connection ended, as soon as that is known; None while it lives."""
        event = self._close_event
        if event is None:
            return None
        by_peer = self._state is QuicConnectionState.DRAINING
        code: CloseCode | None = None
        if event.frame_type is None:
            code = CloseCode(event.error_code) if event.error_code in _CODES else None
        elif event.error_code == _NO_COMMON_ALPN or event.reason_phrase == _NO_COMMON_VERSION:
            return Closed(
                CloseCode.VERSION_MISMATCH, "the devices run incompatible versions", by_peer
            )
        elif self._state is not QuicConnectionState.TERMINATED and not by_peer:
            code = CloseCode.PROTOCOL_ERROR  # aioquic found the peer's packets at fault
        return Closed(code, _plain(event.reason_phrase), by_peer)

    # --- streams

    def unacknowledged(self, stream_id: int | None = None) -> int:
        """Bytes written and not acknowledged yet, on one stream or on all."""
        if stream_id is None:
            return sum(map(_held, self._streams.values()))
        stream = self._streams.get(stream_id)
        return 0 if stream is None else _held(stream)

    def can_send(self, stream_id: int) -> bool:
        """Whether our direction is open: not ended or reset by us, nor refused by the peer."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        return stream.sender._reset_error_code is None and stream.sender._buffer_fin is None

    def can_open_stream(self) -> bool:
        """Whether the peer lets us open one more."""
        return self._local_next_stream_id_bidi // 4 < self._remote_max_streams_bidi

    def received_size(self, stream_id: int) -> int:
        """The highest offset of the stream's received data, or its final size."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.receiver.highest_offset

    def consume(self, stream_id: int, size: int, consumed: int) -> bool:
        """The application took `size` more bytes of a stream, `consumed` in all.

        Returns:
            Whether the peer should be told of a larger window now.
        """
        due = False
        self._uncredited += size
        if self._uncredited >= self._options.connection_window // 4:
            self._local_max_data.value += self._uncredited
            self._uncredited = 0
            due = True
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            limit = consumed + self._options.stream_window
            if limit - stream.max_stream_data_local >= self._options.stream_window // 4:
                stream.max_stream_data_local = limit
                due = True
        return due

    def release_stream(self) -> None:
        """The application is done with a stream that the peer opened; it may open another."""
        self._peer_streams.released += 1

    # --- overrides

    def hasten_ack(self, now: float) -> None:
        """Acknowledge at once if much has come in: it keeps a fast sender's window moving."""
        space = self._spaces[Epoch.ONE_RTT]
        if space.ack_at is not None and space.ack_at > now:
            space.ack_at = 0.0  # in the past: stock paces an acknowledgement due right now

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """See the base class; updates the keys when enough was sent under them."""
        if (
            self._packet_number - self._phase_start >= self._options.key_update_packets
            and self._handshake_confirmed
        ):
            self._phase_start = self._packet_number
            self.request_key_update()
        return super().datagrams_to_send(now)

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls._request_client_certificate = True  # a client's context never looks at it
        self.tls._signature_algorithms = [SignatureAlgorithm.ED25519]
        self.tls._supported_groups = [Group.X25519]

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        super()._handle_crypto_frame(context, frame_type, buf)
        if self._crypto_streams[context.epoch].receiver.highest_offset > CRYPTO_SIZE_MAX:
            raise QuicConnectionError(
                error_code=QuicErrorCode.CRYPTO_BUFFER_EXCEEDED,
                frame_type=frame_type,
                reason_phrase="handshake messages are too large",
            )

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        # Stock doubles the window when half of it is used. With nothing used it only announces
        # the limit, which `consume` has set.
        limit = self._local_max_data
        used, limit.used = limit.used, 0
        try:
            super()._write_connection_limits(builder, space)
        finally:
            limit.used = used

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        if stream.max_stream_data_local == stream.max_stream_data_local_sent:
            return
        receiver = stream.receiver
        highest, receiver.highest_offset = receiver.highest_offset, 0  # as above
        try:
            super()._write_stream_limits(builder, space, stream)
        finally:
            receiver.highest_offset = highest


_CODES: Final = frozenset(CloseCode)
_NO_COMMON_ALPN: Final = QuicErrorCode.CRYPTO_ERROR + AlertDescription.no_application_protocol
_NO_COMMON_VERSION: Final = "Could not find a common protocol version"  # aioquic's own words


def _held(stream: QuicStream) -> int:
    """Bytes that the stream's sender keeps for us; what was reset is as good as gone."""
    sender = stream.sender
    if sender._reset_error_code is not None:
        return 0
    return sender._buffer_stop - sender._buffer_start


def _plain(reason: str) -> str:
    """A peer's words, made safe to print and log."""
    return "".join(c if c.isprintable() else "?" for c in reason[:200])


class _StreamLimit(Limit):
    """How many streams the peer may open. Stock raises `value` when the wire is done with a
    stream; here it follows `released`, and stock's own raise is without effect.
    """

    def __init__(self, stock: Limit, count: int) -> None:
        self.released = 0
        self._count = count
        super().__init__(stock.frame_type, stock.name, count)

    @property
    def value(self) -> int:
        return self._count + self.released

    @value.setter
    def value(self, value: int) -> None:
        pass


class _Pacer(QuicPacketPacer):
    """Stock paces in bursts of at most 16 packets, which caps the rate at 16 a millisecond."""

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        super().update_rate(congestion_window, smoothed_rtt)
        if self.packet_time is not None:
            self.bucket_max = max(
                self.bucket_max, min(BURST_S, BURST_PACKETS_MAX * self.packet_time)
            )
