"""aioquic's private names that `transport.quic_core` builds on.

If one of these tests fails, aioquic has changed. Do not adjust the test first: read the new source,
check every override in transport/quic_core.py and every fact in its docstring against it, run
tests/transport/test_quic.py and tests/conformance/test_link.py, and only then change what is
expected here.
"""

from __future__ import annotations

import importlib.metadata
import inspect

import pytest
from aioquic.quic import connection as quic
from aioquic.quic import packet_builder, recovery, stream
from aioquic.quic.connection import QuicConnection
from aioquic.tls import Epoch

from transport.identity import Identity
from transport.quic_core import QuicCore, QuicOptions

AIOQUIC_VERSION = "1.7.2"
IDENTITY = Identity.from_seed(b"A" * 32)
ADVICE = "aioquic has changed: read the docstring of tests/transport/test_canary.py"


def connecting() -> QuicCore:
    core = QuicCore(IDENTITY, QuicOptions())
    core.connect(("127.0.0.1", 1), 0.0)
    return core


def test_version() -> None:
    assert importlib.metadata.version("aioquic") == AIOQUIC_VERSION, ADVICE


@pytest.mark.parametrize(
    "name",
    [
        "_close_event",
        "_crypto_streams",
        "_handshake_confirmed",
        "_is_client",
        "_local_max_data",
        "_local_max_streams_bidi",
        "_local_max_streams_uni",
        "_local_next_stream_id_bidi",
        "_loss",
        "_packet_number",
        "_remote_max_streams_bidi",
        "_spaces",
        "_state",
        "_streams",
    ],
)
def test_attributes_of_a_connection(name: str) -> None:
    assert hasattr(connecting(), name), ADVICE


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_initialize", ["self", "peer_cid"]),
        ("_handle_crypto_frame", ["self", "context", "frame_type", "buf"]),
        ("_write_connection_limits", ["self", "builder", "space"]),
        ("_write_stream_limits", ["self", "builder", "space", "stream"]),
        ("datagrams_to_send", ["self", "now"]),
    ],
)
def test_methods_that_we_override(name: str, parameters: list[str]) -> None:
    method = getattr(QuicConnection, name, None)
    assert method is not None, ADVICE
    assert list(inspect.signature(method).parameters) == parameters, ADVICE


def test_methods_that_we_override_are_the_ones_that_run() -> None:
    source = inspect.getsource(QuicConnection)
    for call in (
        "self._initialize(",
        "(self._handle_crypto_frame, ",
        "self._write_connection_limits(",
        "self._write_stream_limits(",
    ):
        assert call in source, f"{call}: {ADVICE}"


def test_names_in_tls() -> None:
    tls = connecting().tls
    for name in (
        "_peer_certificate",
        "_peer_certificate_chain",
        "_request_client_certificate",
        "_signature_algorithms",
        "_supported_groups",
    ):
        assert hasattr(tls, name), f"{name}: {ADVICE}"


def test_names_in_streams() -> None:
    one = stream.QuicStream(stream_id=0, max_stream_data_local=1, max_stream_data_remote=1)
    for name in ("_buffer_fin", "_buffer_start", "_buffer_stop", "_reset_error_code"):
        assert hasattr(one.sender, name), f"{name}: {ADVICE}"
    for name in ("highest_offset", "is_finished"):
        assert hasattr(one.receiver, name), f"{name}: {ADVICE}"
    for name in ("max_stream_data_local", "max_stream_data_local_sent"):
        assert hasattr(one, name), f"{name}: {ADVICE}"


def test_names_in_recovery() -> None:
    core = connecting()
    assert hasattr(core._loss, "_pacer"), ADVICE
    pacer = recovery.QuicPacketPacer(max_datagram_size=1200)
    for name in ("bucket_max", "packet_time"):
        assert hasattr(pacer, name), f"{name}: {ADVICE}"
    assert list(inspect.signature(pacer.update_rate).parameters) == [
        "congestion_window",
        "smoothed_rtt",
    ], ADVICE
    assert hasattr(core._spaces[Epoch.ONE_RTT], "ack_at"), ADVICE


def test_limits_are_written_from_the_fields_that_we_steer() -> None:
    """Stock doubles a window when half is used; ours only moves when `consume` says so."""
    core = connecting()
    limit = core._local_max_data
    before = limit.value
    limit.used = before
    builder = packet_builder.QuicPacketBuilder(
        host_cid=b"", peer_cid=b"", version=1, is_client=True, max_datagram_size=1200
    )
    core._write_connection_limits(builder, core._spaces[Epoch.ONE_RTT])
    assert (limit.value, limit.used) == (before, before), ADVICE
    one = stream.QuicStream(stream_id=1, max_stream_data_local=10, max_stream_data_remote=10)
    one.receiver.highest_offset = 10
    core._write_stream_limits(builder, core._spaces[Epoch.ONE_RTT], one)
    assert one.max_stream_data_local == 10, ADVICE


def test_the_words_of_a_failed_version_negotiation() -> None:
    assert "Could not find a common protocol version" in inspect.getsource(quic), ADVICE


def test_aioquic_still_raises_where_facts_say() -> None:
    """If this fails, a bug that we guard against is gone: good, but the guard stays."""
    core = QuicCore(IDENTITY, QuicOptions(), original_destination_connection_id=bytes(8))
    core.receive_datagram(b"\xc0" + bytes(1199), ("127.0.0.1", 1), 0.0)
    with pytest.raises(IndexError):
        core.datagrams_to_send(0.0)
