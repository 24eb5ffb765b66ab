"""Manifests come back as they went in; hostile nodes do not get through."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.codec import pack
from crdt.ids import BlockId
from crdt.slot import MANIFEST_TOP_MAX, BlockRef, Manifest, Profile
from node.blocks.hashing import block_id
from node.blocks.manifest import (
    NODE_REFS_MAX,
    NODE_REFS_MIN,
    NODE_SIZE_MAX,
    ManifestError,
    Walk,
    build_manifest,
    cut_list,
)

KEY = bytes(32)
KIB = 1024


def make_refs(count: int, seed: int = 0) -> list[BlockRef]:
    chance = random.Random(seed)
    return [
        BlockRef(BlockId(chance.randbytes(32)), chance.randrange(16 * KIB, 256 * KIB))
        for _ in range(count)
    ]


def walked(manifest: Manifest, size: int, nodes: dict[BlockId, bytes]) -> list[BlockRef]:
    """Walk lazily, checking offsets and that little is held."""
    walk = Walk(manifest, size)
    found: list[BlockRef] = []
    end = 0
    while True:
        for count, (ref, offset) in enumerate(walk.blocks(), 1):
            assert offset == end
            assert count <= NODE_REFS_MAX
            found.append(ref)
            end += ref.length
        if (wanted := walk.wants()) is None:
            return found
        walk.feed(nodes[wanted.block])


def total(refs: list[BlockRef]) -> int:
    return sum(ref.length for ref in refs)


@given(st.integers(1, 400), st.integers(0, 2**32))
def test_round_trip(count: int, seed: int) -> None:
    refs = make_refs(count, seed)
    manifest, nodes = build_manifest(KEY, Profile.SMALL, refs)
    assert walked(manifest, total(refs), nodes) == refs
    assert all(block_id(KEY, data) == block for block, data in nodes.items())
    assert (manifest.depth == 0) == (count <= MANIFEST_TOP_MAX)


def test_deep_round_trip() -> None:
    refs = make_refs(20_000)
    manifest, nodes = build_manifest(KEY, Profile.SMALL, refs)
    assert manifest.depth == 2
    assert 50 < len(refs) / len(nodes) < 120
    assert walked(manifest, total(refs), nodes) == refs


def test_an_edit_changes_one_path_of_nodes() -> None:
    refs = make_refs(20_000)
    _, nodes = build_manifest(KEY, Profile.SMALL, refs)
    for edited in (
        [*refs[:7000], *make_refs(1, 1), *refs[7001:]],  # replaced
        [*make_refs(1, 1), *refs],  # inserted at the front
        [*refs[:300], *refs[301:]],  # removed
    ):
        manifest, changed = build_manifest(KEY, Profile.SMALL, edited)
        assert len(changed.keys() - nodes.keys()) <= 2 * manifest.depth + 1


@pytest.mark.slow
def test_equal_blocks_make_few_nodes() -> None:
    zeroes = [BlockRef(BlockId(bytes(32)), 64 * KIB)] * 100_000
    manifest, nodes = build_manifest(KEY, Profile.FIXED, zeroes)
    assert manifest.depth == 2
    assert len(nodes) < 10
    assert walked(manifest, total(zeroes), nodes) == zeroes


@given(st.lists(st.integers(0, 8), max_size=1500))
def test_pieces_keep_their_limits(heads: list[int]) -> None:
    blocks = [BlockId(bytes([head] * 32)) for head in heads]
    cuts = list(cut_list(blocks))
    assert [start for start, _ in cuts] == [0, *(end for _, end in cuts)][: len(cuts)]
    assert all(NODE_REFS_MIN <= end - start <= NODE_REFS_MAX for start, end in cuts[:-1])
    assert all(0 < end - start <= NODE_REFS_MAX for start, end in cuts)
    assert sum(end - start for start, end in cuts) == len(blocks)


def test_a_full_node_fits() -> None:
    longest = [[bytes(32), 4 * 1024 * KIB]] * NODE_REFS_MAX
    assert len(pack(longest)) <= NODE_SIZE_MAX


def one_node(wire: object, *, size: int, depth: int = 1, copies: int = 1) -> None:
    """Walk a manifest whose top names the same node `copies` times."""
    data = wire if isinstance(wire, bytes) else pack(wire)
    ref = BlockRef(block_id(KEY, data), max(1, len(data)))
    walk = Walk(Manifest(Profile.SMALL, depth, (ref,) * copies), size)
    while walk.wants() is not None:
        walk.feed(data)
        list(walk.blocks())


REF = [bytes(32), 16 * KIB]


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"\xc1",
        b"\x91" * 3000,
        b"\xdd\xff\xff\xff\xff",
        [],
        {},
        None,
        "text",
        [None],
        [REF, 7],
        [[bytes(31), 16 * KIB]],
        [[bytes(32), 0]],
        [[bytes(32), -1]],
        [[bytes(32), True]],
        [[bytes(32), 2**40]],
        [[bytes(32), 16 * KIB, 1]],
        [REF] * (NODE_REFS_MAX + 1),
        pack([REF]) + b"\0",
        b"\xdc\x00\x01" + pack(REF),  # the length in more bytes than it needs
    ],
)
def test_malformed_nodes_are_refused(wire: object) -> None:
    with pytest.raises(ManifestError):
        one_node(wire, size=16 * KIB)


@pytest.mark.parametrize(
    ("refs", "size"),
    [
        ([REF], 16 * KIB + 1),  # too little
        ([REF], 16 * KIB - 1),  # too much
        ([REF, REF], 16 * KIB),
        ([[bytes(32), 1], REF], 16 * KIB + 1),  # a short block that is not the last
        ([[bytes(32), 256 * KIB + 1]], 256 * KIB + 1),  # larger than the profile allows
        ([REF], 0),
        ([REF], 2**53 + 1),
    ],
)
def test_lists_that_do_not_fit_the_file_are_refused(refs: list[object], size: int) -> None:
    with pytest.raises(ManifestError):
        one_node(refs, size=size)
    if 0 < size <= 2**53:
        plain = Manifest(
            Profile.SMALL,
            0,
            tuple(BlockRef(BlockId(pair[0]), pair[1]) for pair in refs),  # type: ignore[index]
        )
        with pytest.raises(ManifestError):
            Walk(plain, size)


def test_a_node_of_another_length_is_refused() -> None:
    data = pack([REF])
    walk = Walk(Manifest(Profile.SMALL, 1, (BlockRef(block_id(KEY, data), 99),)), 16 * KIB)
    with pytest.raises(ManifestError):
        walk.feed(data)


def test_a_node_that_would_be_huge_is_refused_before_it_is_asked_for() -> None:
    huge = BlockRef(BlockId(bytes(32)), NODE_SIZE_MAX + 1)
    with pytest.raises(ManifestError):
        Walk(Manifest(Profile.SMALL, 1, (huge,)), 16 * KIB)
    with pytest.raises(ManifestError):
        one_node([[bytes(32), NODE_SIZE_MAX + 1]], size=16 * KIB, depth=2)


def test_a_bomb_of_nodes_unfolds_only_as_far_as_it_is_read() -> None:
    """A few nodes that name each other many times claim petabytes; the walk stays small."""
    nodes: dict[BlockId, bytes] = {}
    ref = BlockRef(BlockId(bytes(32)), 16 * KIB)
    for _ in range(5):
        data = pack([[ref.block, ref.length]] * NODE_REFS_MAX)
        ref = BlockRef(block_id(KEY, data), len(data))
        nodes[ref.block] = data
    walk = Walk(Manifest(Profile.SMALL, 5, (ref,) * 16), 2**53)
    for _ in range(300):
        wanted = walk.wants()
        assert wanted is not None
        walk.feed(nodes[wanted.block])
        assert len(list(itertools.islice(walk.blocks(), NODE_REFS_MAX + 1))) <= NODE_REFS_MAX
    assert sum(map(len, walk._path)) <= 16 + 5 * NODE_REFS_MAX
