"""Frames and messages: round trips in any pieces, and nothing but PeerError on anything else."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.codec import pack
from crdt.entry import ENTRY_SIZE_MAX
from crdt.errors import PeerError
from crdt.ids import BlockId, DeviceId, FolderId
from crdt.roster_ops import Join as JoinOp
from crdt.version_vector import COUNTER_MAX, DEVICES_MAX, EMPTY, VersionVector
from transport.admission_messages import Pake, ThisFolder, WhichFolder, Whispered
from transport.fields import HELD_SIZE_MAX, SEALED_BLOCK_SIZE_MAX, WANT_MAX, VersionError
from transport.frames import (
    ADMISSION,
    BLOCKS,
    CONTROL,
    DEPOSITS,
    HEADER_SIZE,
    HOSTING,
    OPENERS,
    OPTIONAL_SIZE_MAX,
    RECEIPTS,
    WANTS,
    FrameDecoder,
    MessageType,
    encode,
)
from transport.keeps import Keeps
from transport.messages import (
    BATCH_SIZE_MAX,
    ENTRIES_MAX,
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
    delta,
    plain_reason,
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
    Place,
    Put,
    Seen,
    Stored,
)

FOLDER = FolderId(b"f" * 32)
ONE, TWO = DeviceId(b"1" * 32), DeviceId(b"2" * 32)
VECTOR = VersionVector({ONE: 7, TWO: 1})
BLOCK_IDS = (BlockId(b"b" * 32), BlockId(b"a" * 32))
JOIN = Join(FOLDER, JoinOp(ONE, TWO, "alice/laptop", b"s" * 64, b"t" * 64))
PLACE = Place(b"g" * 16, 7, b"m" * 16)
EXAMPLES: list[Message] = [
    Hello(FOLDER, "alice/laptop", "shoal 0.1"),
    Have(VECTOR, VersionVector({ONE: 6}), {ONE: b"h" * 32}),
    Entries((b"one", b"two")),
    Ack(VECTOR, EMPTY, {TWO: b"h" * 32}, settled=2),
    Bye(1, "no member"),
    OpenBlocks(FOLDER),
    Want(3, BLOCK_IDS),
    Pieces(3, BLOCK_IDS[0], b"sealed"),
    Block(3, BLOCK_IDS[0], b"sealed"),
    Missing(3, BLOCK_IDS),
    Locate(4, BLOCK_IDS),
    Located(4, ()),
    JOIN,
    Admitted((b"one",), more=True),
    Refused(2, "used"),
    Pake(b"B" + b"e" * 32),
    Whispered(b"sealed"),
    WhichFolder(),
    ThisFolder(FOLDER),
    Block(3, BLOCK_IDS[0], b"sealed", bytes(ONE), b"s" * 64),
    Here(0, BLOCK_IDS),
    Notice("full"),
    Seen({ONE: VECTOR}),
    Keeps(3, 2, True),
    Host(FOLDER, "token"),
    Hosting("relay"),
    OpenDeposits(FOLDER, PLACE),
    Depot(PLACE, continues=True),
    Offer(5, BLOCK_IDS),
    Lacking(5, (), "full"),
    Put(5, BLOCK_IDS[0], b"sealed", b"s" * 64),
    Stored(5, PLACE),
    Drop(BLOCK_IDS, VECTOR, b"s" * 64),
    List(BLOCK_IDS[0]),
    Listed(tuple(sorted(BLOCK_IDS))),
]
STREAMS = (CONTROL, WANTS, BLOCKS, ADMISSION, OPENERS, HOSTING, DEPOSITS, RECEIPTS)
examples = pytest.mark.parametrize("message", EXAMPLES, ids=lambda one: type(one).__name__)


def decoder_for(message: Message) -> FrameDecoder:
    return FrameDecoder(next(stream for stream in STREAMS if type(message) in stream))


def frame(kind: int, body: bytes, size: int | None = None) -> bytes:
    return (len(body) if size is None else size).to_bytes(4, "big") + bytes([kind]) + body


@examples
def test_round_trip_in_single_bytes(message: Message) -> None:
    decoder, data = decoder_for(message), encode(message)
    messages = [got for i in range(len(data)) for got in decoder.feed(data[i : i + 1])]
    assert messages == [message]
    assert not decoder.in_frame
    decoder.finish()


def test_every_type_has_an_example() -> None:
    assert {type(message) for message in EXAMPLES} == frozenset().union(*STREAMS)


@given(st.lists(st.sampled_from(EXAMPLES[:5]), max_size=8), st.lists(st.integers(0, 2000)))
def test_round_trip_in_any_pieces(messages: list[Message], cuts: list[int]) -> None:
    data, decoder, got = b"".join(map(encode, messages)), FrameDecoder(CONTROL), list[Message]()
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(places):
        got += decoder.feed(data[start:end])
    assert got == messages


@examples
def test_every_flipped_byte_is_refused_or_means_something_else(message: Message) -> None:
    data = encode(message)
    for at in range(len(data)):
        for flip in (1, 0x20, 0x80, 0xFF):
            changed = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
            decoder = decoder_for(message)
            try:
                got = decoder.feed(changed)
            except PeerError:
                continue
            assert got != [message]


@examples
def test_every_cut_is_seen(message: Message) -> None:
    data = encode(message)
    for size in range(1, len(data)):
        decoder = decoder_for(message)
        assert decoder.feed(data[:size]) == []
        with pytest.raises(PeerError, match="middle"):
            decoder.finish()


@given(st.binary(max_size=200), st.sampled_from(STREAMS))
def test_noise_raises_nothing_else(data: bytes, stream: frozenset[MessageType]) -> None:
    decoder = FrameDecoder(stream)
    try:
        decoder.feed(data)
    except PeerError:
        with pytest.raises(PeerError):
            decoder.feed(b"")


@given(st.sampled_from(EXAMPLES), st.dictionaries(st.text(max_size=8), st.integers(0, 9)))
def test_wrong_fields_raise_nothing_else(message: Message, fields: dict[str, int]) -> None:
    body = pack({**message.to_wire(), **fields})
    try:
        decoder_for(message).feed(frame(message.type, body))
    except PeerError:
        assert fields.keys() & message.to_wire().keys()


@examples
def test_a_missing_field_is_refused(message: Message) -> None:
    wire = message.to_wire()
    for name in wire:
        body = pack({key: value for key, value in wire.items() if key != name})
        with pytest.raises(PeerError, match="malformed"):
            decoder_for(message).feed(frame(message.type, body))


@examples
def test_oversize_is_refused_by_the_header_alone(message: Message) -> None:
    decoder = decoder_for(message)
    assert decoder.feed(frame(message.type, b"", size=message.size_max)) == []
    with pytest.raises(PeerError, match="too large"):
        decoder_for(message).feed(frame(message.type, b"", size=message.size_max + 1))


def test_unknown_types() -> None:
    hello = encode(EXAMPLES[0])
    decoder = FrameDecoder()
    optional = frame(200, b"x" * OPTIONAL_SIZE_MAX)
    assert decoder.feed(hello + optional[:-1]) == [EXAMPLES[0]]
    assert decoder.in_frame
    assert len(decoder._buffer) == 0, "skipped bytes are not kept"
    assert decoder.feed(optional[-1:] + encode(EXAMPLES[1])) == [EXAMPLES[1]]
    with pytest.raises(PeerError, match="too large"):
        decoder.feed(frame(200, b"", size=OPTIONAL_SIZE_MAX + 1))
    with pytest.raises(PeerError, match="type 127"):
        FrameDecoder(CONTROL).feed(frame(127, b""))
    with pytest.raises(PeerError, match="type 200"):
        FrameDecoder().feed(optional)  # a stream starts with an opener


def test_the_opener_says_what_may_follow() -> None:
    want = Want(1, BLOCK_IDS)
    assert FrameDecoder().feed(encode(OpenBlocks(FOLDER)) + encode(want)) == [
        OpenBlocks(FOLDER),
        want,
    ]
    for opener, other in ((EXAMPLES[0], want), (OpenBlocks(FOLDER), EXAMPLES[2]), (JOIN, JOIN)):
        with pytest.raises(PeerError, match="where none may be"):
            FrameDecoder().feed(encode(opener) + encode(other))
    with pytest.raises(PeerError, match="where none may be"):
        FrameDecoder().feed(frame(Entries.type, b"", size=4_000_000))


@pytest.mark.parametrize("message", [EXAMPLES[0], OpenBlocks(FOLDER), JOIN])
def test_another_version_is_told_apart(message: Message) -> None:
    body = pack({"version": 2, "everything": "else"})
    with pytest.raises(VersionError, match="version 2"):
        FrameDecoder().feed(frame(message.type, body))


def test_unknown_fields_are_ignored() -> None:
    body = pack({**EXAMPLES[0].to_wire(), "mood": "good"})
    assert FrameDecoder().feed(frame(Hello.type, body)) == [EXAMPLES[0]]


def test_a_want_may_say_what_is_held() -> None:
    want = Want(3, BLOCK_IDS[:1], b"held!")
    assert decoder_for(want).feed(encode(want)) == [want]
    plain = Want(3, BLOCK_IDS[:1])
    assert "held" not in plain.to_wire()
    for body in (
        {**plain.to_wire(), "held": bytes(HELD_SIZE_MAX + 1)},
        {**plain.to_wire(), "held": "text"},
        {**Want(3, BLOCK_IDS).to_wire(), "held": b"of which?"},
    ):
        with pytest.raises(PeerError, match="malformed Want"):
            decoder_for(plain).feed(frame(Want.type, pack(body)))


def test_the_largest_messages_fit() -> None:
    devices = [DeviceId(i.to_bytes(32, "big")) for i in range(1, DEVICES_MAX + 1)]
    full = VersionVector(dict.fromkeys(devices, COUNTER_MAX))
    heads = dict.fromkeys(devices, b"h" * 32)
    blocks = tuple(BlockId(i.to_bytes(32, "big")) for i in range(WANT_MAX))
    for message in (
        Have(full, full, heads),
        Ack(full, full, heads, settled=2**32 - 1),
        Want(2**32 - 1, blocks),
        Want(2**32 - 1, blocks[:1], bytes(HELD_SIZE_MAX)),
        Pieces(2**32 - 1, blocks[0], bytes(SEALED_BLOCK_SIZE_MAX)),
        Missing(2**32 - 1, blocks),
        Locate(2**32 - 1, blocks),
        Located(2**32 - 1, blocks),
        Block(2**32 - 1, blocks[0], bytes(SEALED_BLOCK_SIZE_MAX)),
        Entries((bytes(ENTRY_SIZE_MAX),)),
        Entries((bytes(BATCH_SIZE_MAX // ENTRIES_MAX),) * ENTRIES_MAX),
        Admitted((bytes(ENTRY_SIZE_MAX),), more=True),
        Hello(FOLDER, "x" * 128, "y" * 64),
        Bye(0xFFFF, "r" * 200),
        dataclasses.replace(JOIN, op=dataclasses.replace(JOIN.op, name="x" * 128)),
    ):
        data = encode(message)
        assert decoder_for(message).feed(data[:HEADER_SIZE]) == []


def test_values_refuse_what_must_not_be_sent() -> None:
    for make in (
        lambda: Hello(FOLDER, "line\nbreak", "a"),
        lambda: Hello(FOLDER, "n", "a\x1b[2J"),
        lambda: Have(EMPTY, EMPTY, {ONE: b"h" * 32}),
        lambda: Have(VECTOR, EMPTY, {ONE: b"h"}),
        lambda: Ack(EMPTY, EMPTY, {}, settled=-1),
        lambda: Entries(()),
        lambda: Entries((b"",)),
        lambda: Want(1, ()),
        lambda: Want(1, (BLOCK_IDS[0], BLOCK_IDS[0])),
        lambda: Want(2**32, BLOCK_IDS),
        lambda: Want(1, BLOCK_IDS, b"held!"),
        lambda: Want(1, BLOCK_IDS[:1], bytes(HELD_SIZE_MAX + 1)),
        lambda: Block(1, BLOCK_IDS[0], b""),
        lambda: Pieces(1, BLOCK_IDS[0], b""),
        lambda: Bye(-1, ""),
        lambda: Bye(1, "r" * 201),
    ):
        with pytest.raises(ValueError, match=r"."):
            make()


@given(st.text(max_size=300))
def test_any_text_becomes_a_reason(text: str) -> None:
    Bye(0, plain_reason(text))


@given(
    *(
        st.dictionaries(st.sampled_from([ONE, TWO, DeviceId(b"3" * 32)]), st.integers(1, 4)).map(
            VersionVector
        )
        for _ in range(2)
    )
)
def test_a_delta_brings_the_rest(new: VersionVector, told: VersionVector) -> None:
    assert told | delta(new, told) == told | new
