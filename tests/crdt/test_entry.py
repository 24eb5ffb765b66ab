from __future__ import annotations

from dataclasses import replace

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from crdt.codec import pack, unpack
from crdt.entry import (
    BODY_SIZE_MAX,
    NO_HASH,
    OPENED_SIZE_MAX,
    START,
    WRITES_MAX,
    Entry,
    EntryKind,
    Header,
    LogPosition,
    build,
    build_tree,
    open_writes,
    seal_writes,
    writes_max,
)
from crdt.errors import IntegrityError, PeerError
from crdt.ids import ROOT, BlockId, DeviceId, FolderId, ItemId
from crdt.seal import EpochKey, device_of, pad, seal, verify
from crdt.slot import (
    MANIFEST_TOP_MAX,
    PLACEMENTS_MAX,
    BlockRef,
    Content,
    Kind,
    Manifest,
    Placement,
    Profile,
    Slot,
)
from crdt.version_vector import EMPTY, VersionVector
from tests.people import secret

SEED = secret("author")
ME = device_of(SEED)
OTHER = device_of(secret("other"))
FOLDER = FolderId(secret("folder"))
KEY = EpochKey(FOLDER, secret("epoch"))
NONCE = secret("nonce")[:24]
DEPS = VersionVector({OTHER: 5})
AFTER = LogPosition(2, secret("head"), 6)
SEQ, LAMPORT = 3, 9


def item(number: int) -> ItemId:
    return ItemId(number.to_bytes(16))


def directory(version: VersionVector, lamport: int = LAMPORT) -> Content:
    return Content(version, ME, lamport, Kind.DIRECTORY, (ME, SEQ))


def slot(
    *, counter: int = SEQ, lamport: int = LAMPORT, parent: ItemId = ROOT, name: str = "a"
) -> Slot:
    return Slot(counter, (Placement(lamport, parent, name),))


def tree(*writes: tuple[ItemId, Slot]) -> Entry:
    return build_tree(
        SEED,
        key=KEY,
        after=AFTER,
        deps=DEPS,
        lamport=LAMPORT,
        writes=writes or [(item(1), slot())],
        nonce=NONCE,
    )


def sealed_by_hand(stored: bytes) -> Entry:
    """A tree entry whose author seals whatever it likes."""
    binding = pack(["shoal v1 tree body", FOLDER, ME, SEQ, KEY.number])
    body = seal(KEY.entry_key, stored, nonce=NONCE, associated=binding)
    return build(
        SEED,
        folder=FOLDER,
        after=AFTER,
        deps=DEPS,
        lamport=LAMPORT,
        kind=EntryKind.TREE,
        body=body,
        epoch=KEY.number,
    )


def writes_by_hand(wire: object) -> Entry:
    return sealed_by_hand(pad(b"\0" + pack(wire)))


def test_an_entry_survives_the_wire() -> None:
    writes = [(item(2), slot(name="ä")), (item(1), slot(parent=item(2)))]
    entry = Entry.from_bytes(tree(*writes).to_bytes())
    assert entry == tree(*writes)
    assert entry.verify_signature()
    assert open_writes(entry, KEY) == sorted(writes, key=lambda write: write[0])
    assert entry.position == LogPosition(SEQ, entry.hash, LAMPORT)
    assert entry.header.deps == VersionVector({OTHER: 5, ME: 2})


def test_an_entry_with_any_byte_changed_is_refused() -> None:
    data = tree().to_bytes()
    for i in range(len(data)):
        bad = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        try:
            entry = Entry.from_bytes(bad)
        except ValueError:
            continue
        assert not entry.verify_signature()


def test_an_entry_cut_short_or_continued_is_refused() -> None:
    data = tree().to_bytes()
    for bad in [*(data[:i] for i in range(0, len(data), 7)), data + b"\0"]:
        with pytest.raises(ValueError, match=r"\w"):
            Entry.from_bytes(bad)


@given(st.binary(max_size=200))
def test_junk_is_refused_with_a_value_error_and_nothing_else(junk: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Entry.from_bytes(junk)
    with pytest.raises(ValueError, match=r"\w"):
        Header.from_bytes(junk)


@pytest.mark.parametrize("index", range(10))
@pytest.mark.parametrize(
    "value", [None, -1, 0, 2**53 + 1, 2**64 - 1, True, "a", b"", b"x" * 32, []]
)
def test_a_header_with_a_foreign_field_is_refused_or_another(index: int, value: object) -> None:
    original = tree().header
    fields = unpack(original.packed, size_max=10_000)
    fields[index] = value
    try:
        header = Header.from_bytes(pack(fields))
    except ValueError:
        return
    assert header != original
    assert header.packed == pack(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq": 4}, "previous entry"),
        ({"seq": 1, "deps": EMPTY}, "no predecessor"),
        ({"prev_hash": NO_HASH}, "no predecessor"),
        ({"deps": DEPS}, "previous entry"),
        ({"lamport": 0}, "lamport"),
        ({"lamport": 2**53 + 1}, "lamport"),
        ({"epoch": 0}, "epoch"),
        ({"kind": EntryKind.ROSTER}, "epoch"),
        ({"body_hash": b""}, "32 bytes"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(tree().header, **change)  # type: ignore[arg-type]


def test_a_body_moved_to_another_place_does_not_open() -> None:
    body = tree().body
    header = tree().header
    for change in (
        {"folder": FolderId(bytes(32))},
        {"device": OTHER, "deps": VersionVector({OTHER: 2})},
        {"seq": 4, "deps": VersionVector({ME: 3})},
    ):
        moved = Entry(replace(header, **change), bytes(64), body)
        with pytest.raises(IntegrityError):
            open_writes(moved, KEY)


def test_a_body_opens_under_its_own_epoch_alone() -> None:
    other = EpochKey(FOLDER, secret("other epoch"))
    with pytest.raises(IntegrityError):
        open_writes(tree(), other)
    renamed = Entry(replace(tree().header, epoch=other.number), bytes(64), tree().body)
    with pytest.raises(IntegrityError):
        open_writes(renamed, other)


def test_a_signature_moved_to_another_header_does_not_hold() -> None:
    entry = tree()
    for change in ({"lamport": 10}, {"folder": FolderId(bytes(32))}, {"epoch": 5}):
        moved = Entry(replace(entry.header, **change), entry.signature, entry.body)
        assert not moved.verify_signature()
    assert not verify(ME, "shoal v1 join", entry.header.packed, entry.signature)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        ((item(1), slot(counter=2)), "counter"),
        ((item(1), slot(lamport=LAMPORT + 1)), "placement is newer"),
        ((item(1), slot(parent=item(1))), "lie in itself"),
        ((ROOT, slot()), "never the root"),
        ((item(1), Slot(SEQ, (), None, VersionVector({OTHER: 6}))), "deletion covers"),
        ((item(1), Slot(SEQ, (), None, VersionVector({ME: 4}))), "deletion covers"),
        (
            (item(1), Slot(SEQ, (), directory(VersionVector({ME: 3}), lamport=10))),
            "content is newer",
        ),
        (
            (item(1), Slot(SEQ, (), directory(VersionVector({ME: 3, OTHER: 6})))),
            "version covers",
        ),
        ((item(1), Slot(SEQ, (), directory(VersionVector({ME: 4})))), "version covers"),
    ],
)
def test_a_write_about_what_its_author_had_not_seen_is_neither_made_nor_taken(
    write: tuple[ItemId, Slot], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tree(write)
    received = message.replace("never the root", "none of the root")
    with pytest.raises(PeerError, match=received) as caught:
        open_writes(writes_by_hand([[write[0], write[1].to_wire()]]), KEY)
    assert ME.short in str(caught.value)


def test_writes_about_all_that_its_author_had_seen_are_fine() -> None:
    seen = VersionVector({ME: 3, OTHER: 5})
    write = (item(1), Slot(SEQ, (), directory(seen), seen))
    assert open_writes(tree(write), KEY) == [write]


@pytest.mark.parametrize(
    "wire",
    [
        [],
        None,
        {"a": 1},
        [[item(1)]],
        [[item(1)[1:], slot().to_wire()]],
        [[item(1), slot().to_wire(), 1]],
        [[item(1), slot().to_wire()], [item(1), slot(name="b").to_wire()]],
        [[item(2), slot().to_wire()], [item(1), slot().to_wire()]],
        [[item(1), [SEQ, [[1, ROOT, "a\0b"]], None, None]]],
        [[item(1), [SEQ, [[1, ROOT, ".."]], None, None]]],
        [[item(1), [True, [], None, None]]],
    ],
)
def test_a_malformed_body_names_its_author(wire: object) -> None:
    with pytest.raises(PeerError, match=ME.short):
        open_writes(writes_by_hand(wire), KEY)


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        pad(b""),
        pad(b"\2x"),
        pad(b"\0\xc1"),
        b"\0" + pack([[item(1), slot().to_wire()]]),  # not padded
        pad(b"\1not zstd"),
        pad(b"\1" + zstandard.ZstdCompressor().compress(bytes(OPENED_SIZE_MAX + 1))),
        pad(b"\1" + zstandard.ZstdCompressor().compress(b"text")[:-1]),
    ],
)
def test_what_is_not_stored_right_names_its_author(stored: bytes) -> None:
    with pytest.raises(PeerError, match=ME.short):
        open_writes(sealed_by_hand(stored), KEY)


def test_a_bomb_that_declares_no_size_or_a_small_one_does_not_go_off() -> None:
    plain = bytes(64 * 1024 * 1024)
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    bomb = compressor.compress(plain)
    with pytest.raises(PeerError, match=r"declares|valid zstd"):
        open_writes(sealed_by_hand(pad(b"\1" + bomb)), KEY)
    honest = zstandard.ZstdCompressor().compress(bytes(1000))
    liar = honest.replace((1000 - 256).to_bytes(2, "little"), (900 - 256).to_bytes(2, "little"), 1)
    assert zstandard.frame_content_size(liar) == 900
    with pytest.raises(PeerError, match=r"declares|valid zstd"):
        open_writes(sealed_by_hand(pad(b"\1" + liar)), KEY)


def test_too_many_or_too_large_writes_are_our_own_mistake() -> None:
    many = [(item(n), slot()) for n in range(1, WRITES_MAX + 2)]
    with pytest.raises(ValueError, match="1 to 2000 writes"):
        seal_writes(many, KEY, NONCE, device=ME, seq=SEQ)
    with pytest.raises(ValueError, match="1 to 2000 writes"):
        seal_writes([], KEY, NONCE, device=ME, seq=SEQ)
    with pytest.raises(ValueError, match="each item once"):
        seal_writes([many[0], many[0]], KEY, NONCE, device=ME, seq=SEQ)
    noise = [
        (
            item(n),
            Slot(
                SEQ,
                (),
                Content(
                    VersionVector({ME: SEQ}),
                    ME,
                    LAMPORT,
                    Kind.FILE,
                    (ME, SEQ),
                    size=4096,
                    inline=b"".join(secret(n, i) for i in range(128)),
                ),
            ),
        )
        for n in range(1, 1100)
    ]
    with pytest.raises(ValueError, match="sealed writes take"):
        seal_writes(noise, KEY, NONCE, device=ME, seq=SEQ)


def test_an_entry_too_large_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ValueError, match="at most"):
        Entry.from_bytes(bytes(BODY_SIZE_MAX + 70 * 1024))
    with pytest.raises(ValueError, match="at most"):
        build(
            SEED,
            folder=FOLDER,
            after=START,
            deps=EMPTY,
            lamport=1,
            kind=EntryKind.ROSTER,
            body=bytes(BODY_SIZE_MAX + 1),
        )


def test_a_thousand_alike_writes_are_small() -> None:
    writes = [(ItemId(secret(n)[:16]), slot(name=f"picture-{n}.jpg")) for n in range(1000)]
    entry = tree(*writes)
    assert len(entry.to_bytes()) < 30_000
    assert len(open_writes(entry, KEY)) == 1000


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 100, 1024])
def test_as_many_writes_as_are_said_to_fit_are_read_back(devices: int) -> None:
    """Of the largest there are: four placements, a manifest, everybody named twice."""
    count = min(writes_max(devices), 12 * 1024**2 // (1024 + 80 * devices))
    everybody = {DeviceId(n.to_bytes(32)): 1 for n in range(1, devices)}
    seen = VersionVector({**everybody, ME: SEQ})
    refs = tuple(BlockRef(BlockId(n.to_bytes(32)), 1000) for n in range(MANIFEST_TOP_MAX))
    content = Content(
        seen, ME, LAMPORT, Kind.FILE, (ME, SEQ), size=16_000,
        manifest=Manifest(Profile.SMALL, 0, refs),
    )  # fmt: skip
    places = tuple(Placement(LAMPORT - n, ROOT, "name") for n in range(PLACEMENTS_MAX))
    entry = build_tree(
        SEED,
        key=KEY,
        after=AFTER,
        deps=VersionVector(everybody),
        lamport=LAMPORT,
        writes=[(item(n), Slot(SEQ, places, content, seen)) for n in range(1, count + 1)],
        nonce=NONCE,
    )
    assert len(open_writes(Entry.from_bytes(entry.to_bytes()), KEY)) == count


def test_more_values_than_are_decoded_are_our_own_mistake() -> None:
    everybody = VersionVector({**{DeviceId(n.to_bytes(32)): 1 for n in range(1, 100)}, ME: SEQ})
    writes = [(item(n), Slot(SEQ, (), None, everybody)) for n in range(1, 700)]
    with pytest.raises(ValueError, match="values"):
        seal_writes(writes, KEY, NONCE, device=ME, seq=SEQ)


def test_our_clock_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="not after"):
        build(
            SEED,
            folder=FOLDER,
            after=AFTER,
            deps=DEPS,
            lamport=AFTER.lamport,
            kind=EntryKind.ROSTER,
            body=b"",
        )


def test_a_device_id_is_32_bytes_in_a_header_too() -> None:
    fields = unpack(tree().header.packed, size_max=10_000)
    fields[2] = bytes(31)
    with pytest.raises(ValueError, match="32 bytes"):
        Header.from_bytes(pack(fields))
    assert DeviceId(ME) == ME
