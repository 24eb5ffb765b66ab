"""A block as what differs from one that is held: what is built is the block, and little is sent."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.codec import pack
from crdt.errors import IntegrityError
from crdt.ids import BlockId
from crdt.slot import BlockRef, Profile
from node.blocks.codec import open_answer, seal_answer, seal_block
from node.blocks.hashing import block_id
from node.blocks.manifest import alike, build_manifest
from node.blocks.pieces import (
    HASH_SIZE,
    LENGTH_MIN,
    PIECES_MAX,
    answer,
    answer_size_max,
    build,
    cut,
    hash_pieces,
)
from tests.node.blocks.test_codec import FIRST, KEYS
from transport.fields import HELD_SIZE_MAX

KEY = b"k" * 32
KIB = 1024
NOISE = random.Random(1).randbytes(5 * 1024 * KIB)


def pieces_of(old: bytes, length: int) -> list[memoryview]:
    return cut(old, length)[:PIECES_MAX]


def sent(old: bytes, new: bytes) -> tuple[int, int]:
    """Bytes of the question and of the answer, both before sealing."""
    pieces = pieces_of(old, len(new))
    held = hash_pieces(KEY, pieces)
    answered = answer(KEY, new, held)
    if len(answered) <= answer_size_max(len(new)):
        assert build(pieces, answered, len(new)) == new
    return len(held), len(answered)


@pytest.mark.parametrize("size", [2 * KIB, 10 * KIB, 64 * KIB, 200 * KIB, 1024 * KIB, 4096 * KIB])
def test_four_bytes_cost_little(size: int) -> None:
    old = NOISE[:size]
    for at in (0, size // 2, size - 4):
        held, answered = sent(old, old[:at] + b"edit" + old[at + 4 :])
        assert held <= HELD_SIZE_MAX
        assert held + answered < size // 4 + 1_000
        if size == 64 * KIB:
            assert held + answered < 3 * KIB


@pytest.mark.parametrize("change", [b"", b"x", b"more" * 100])
def test_an_insertion_moves_pieces_and_changes_few(change: bytes) -> None:
    old = NOISE[: 100 * KIB]
    for at in (0, 50_000, len(old)):
        held, answered = sent(old, old[:at] + change + old[at:])
        assert held + answered < 6 * KIB


def test_the_hashes_of_the_largest_blocks_fit() -> None:
    assert PIECES_MAX * HASH_SIZE == HELD_SIZE_MAX
    for size in (16 * KIB, 256 * KIB, 1024 * KIB, 4096 * KIB):
        assert len(cut(NOISE[:size], size)) < PIECES_MAX
    assert len(pieces_of(bytes(4096 * KIB), LENGTH_MIN)) == PIECES_MAX


@given(
    old=st.binary(min_size=1, max_size=4_000),
    edits=st.lists(st.tuples(st.integers(0, 4_000), st.binary(max_size=40), st.integers(0, 40))),
    rest=st.integers(0, 200 * KIB),
)
def test_whatever_was_edited_the_block_comes_out(
    old: bytes, edits: list[tuple[int, bytes, int]], rest: int
) -> None:
    old += NOISE[:rest]
    new = old
    for at, insert, drop in edits:
        new = new[:at] + insert + new[at + drop :]
    if new:
        sent(old, new)
        sent(new, old)


def test_repeated_pieces_and_nothing_in_common() -> None:
    sent(bytes(64 * KIB), bytes(64 * KIB + 1))
    _, answered = sent(NOISE[: 64 * KIB], NOISE[-64 * KIB :])
    assert answered > answer_size_max(64 * KIB), "so the block itself is sent"


@pytest.mark.parametrize(
    "answered",
    [
        b"",
        b"\xc1",
        pack({}),
        pack([b""]),
        pack([b"x" * 101]),
        pack([None]),
        pack([[0]]),
        pack([[0, 0]]),
        pack([[0, -1]]),
        pack([[-1, 1]]),
        pack([[0, 3]]),
        pack([[2**40, 1]]),
        pack([[0, 2**63]]),
        pack([[0, 1, 1]]),
        pack([["0", "1"]]),
        pack([b"x" * 50, b"y" * 50]) + b"x",
    ],
)
def test_answers_that_make_no_sense_are_refused(answered: bytes) -> None:
    pieces = [memoryview(b"a" * 50), memoryview(b"b" * 40)]
    with pytest.raises(ValueError, match=r"."):
        build(pieces, answered, 100)


def test_what_is_built_is_bounded_by_the_block() -> None:
    pieces = [memoryview(b"a" * 50), memoryview(b"b" * 40)]
    assert build(pieces, pack([]), 100) == b""
    assert build(pieces, pack([[0, 2]] * 15), 100) == (b"a" * 50 + b"b" * 40) * 2
    with pytest.raises(ValueError, match="allowed"):
        build(pieces, pack([[0, 2]] * 40), 100)


def test_a_block_torn_to_shreds_is_sent_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    data = NOISE[: 64 * KIB]
    held = hash_pieces(KEY, pieces_of(data, len(data))[::3])
    assert len(answer(KEY, data, held)) <= answer_size_max(len(data))
    monkeypatch.setattr("node.blocks.pieces.OPS_MAX", 10)  # fewer than there are shreds
    assert len(answer(KEY, data, held)) > answer_size_max(len(data))


@given(st.binary(max_size=400))
def test_noise_is_no_answer(answered: bytes) -> None:
    try:
        built = build([memoryview(b"a" * 50), memoryview(b"b" * 40)], answered, 100)
    except ValueError:
        return
    assert len(built) <= 100 + 90


def test_whatever_hashes_come_the_answer_is_bounded() -> None:
    data = NOISE[: 64 * KIB]
    for held in (b"x", bytes(HELD_SIZE_MAX), NOISE[:HELD_SIZE_MAX], b"abcde" * 700):
        assert len(answer(KEY, data, held)) < len(data) + 1_000


def test_a_sealed_answer_opens_as_nothing_else() -> None:
    block, nonce = BlockId(b"b" * 32), b"n" * 24
    for plain in (NOISE[:500], b"text " * 300):
        sealed = seal_answer(FIRST, block, plain, nonce=nonce)
        assert open_answer(KEYS, block, sealed, 2_000) == plain
        whole = seal_block(FIRST, block, plain, nonce=nonce)
        for named, wrong, most in (
            (BlockId(b"c" * 32), sealed, 2_000),
            (block, sealed[:-1], 2_000),
            (block, sealed, 400),
            (block, whole, 2_000),
            (block, b"", 2_000),
        ):
            with pytest.raises(IntegrityError):
                open_answer(KEYS, named, wrong, most)


def test_a_small_frame_that_declares_much_is_not_decoded() -> None:
    bomb = seal_answer(FIRST, BlockId(b"b" * 32), bytes(10**7), nonce=b"n" * 24)
    assert len(bomb) < 2_000
    with pytest.raises(IntegrityError, match="declare"):
        open_answer(KEYS, BlockId(b"b" * 32), bomb, 100_000)


# --- which block a new one is like ----------------------------------------------------------------


def refs(text: str) -> list[BlockRef]:
    return [BlockRef(BlockId(letter.encode() * 32), 100) for letter in text]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("abc", "abc", ""),
        ("abc", "aXc", "Xb"),
        ("abc", "Xabc", ""),  # nothing went
        ("abc", "Xbc", "Xa"),
        ("abc", "abX", "Xc"),
        ("abc", "aXYc", "XbYb"),
        ("abcd", "aXd", "Xb"),
        ("abc", "XYZ", "XaYbZc"),
        ("abc", "cXa", ""),
        ("aab", "aXb", "Xa"),
        ("", "XY", ""),
    ],
)
def test_alike(old: str, new: str, expected: str) -> None:
    found = alike(refs(old), refs(new))
    named = {key.decode()[0]: ref.block.decode()[0] for key, ref in found.items()}
    if old == "aab":  # which of the equal ones stayed cannot be told
        assert named.keys() <= {"X"}
    else:
        assert named == dict(zip(expected[::2], expected[1::2], strict=True))


def test_nodes_of_a_long_list_are_like_those_before() -> None:
    chance = random.Random(3)
    old = [BlockRef(BlockId(chance.randbytes(32)), 70_000) for _ in range(5_000)]
    new = [*old[:2_500], BlockRef(block_id(KEY, b"new"), 70_000), *old[2_501:]]
    before, nodes = build_manifest(KEY, Profile.SMALL, old)
    after, new_nodes = build_manifest(KEY, Profile.SMALL, new)
    (found,) = alike(before.blocks, after.blocks).items()
    held, answered = sent(nodes[found[1].block], new_nodes[found[0]])
    assert held + answered < 2_000
