"""Manifests: a file's list of blocks, as a tree of blocks.

Up to 16 references stand in the slot itself (`crdt.slot.Manifest`). A longer list is cut into
*nodes*, each the canonical encoding of `[[block, length], ...]`, which are blocks themselves:
named by the keyed hash of their bytes, and referred to with the length of those bytes. The list of
nodes is cut again, until 16 references are enough. `depth` counts the levels of nodes.

A list is cut after references that their block ids choose, so an edit changes the nodes on one
path and no others, and equal lists have equal nodes on every device.

Pure and synchronous. Nodes from elsewhere are hostile: `Walk` checks each one, and never holds more
than one path of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from crdt.codec import pack, unpack
from crdt.errors import IntegrityError
from crdt.ids import BlockId
from crdt.slot import FILE_SIZE_MAX, MANIFEST_TOP_MAX, BlockRef, Manifest, Profile, parse_refs
from node.blocks.chunker import SIZES
from node.blocks.hashing import block_id

NODE_REFS_MIN: Final = 16  # fewer would make deep trees of tiny nodes
NODE_REFS_MAX: Final = 256  # bounds what a walk holds a level, and what a peer can make us decode
NODE_SIZE_MAX: Final = 3 + NODE_REFS_MAX * (1 + 2 + 32 + 5)  # bytes of a full node's encoding
_CUTTING_BYTES: Final = 4  # of 256 values of an id's first byte: nodes of about 80 references


class ManifestError(IntegrityError):
    """A version's list of blocks makes no sense. Its author wrote it so: no peer has a better
    one, and the file stays as it is here.
    """


def build_manifest(
    key: bytes, profile: Profile, refs: Sequence[BlockRef]
) -> tuple[Manifest, dict[BlockId, bytes]]:
    """The manifest of a file with these data blocks, and all of its nodes by id.

    Args:
        key: The folder's block id key.
        profile: How the file was cut.
        refs: One or more.
    Raises:
        ValueError: no blocks, or too many for `MANIFEST_DEPTH_MAX` (petabytes).
    """
    nodes: dict[BlockId, bytes] = {}
    depth = 0
    while len(refs) > MANIFEST_TOP_MAX:
        parents = []
        for start, end in cut_list([ref.block for ref in refs]):
            data = pack([[ref.block, ref.length] for ref in refs[start:end]])
            block = block_id(key, data)
            nodes[block] = data
            parents.append(BlockRef(block, len(data)))
        refs = parents
        depth += 1
    return Manifest(profile, depth, tuple(refs)), nodes


def cut_list(blocks: Sequence[BlockId]) -> Iterator[tuple[int, int]]:
    """Cut a list of blocks at places that its content chooses: yields (start, end) indexes.

    A block that repeats the one before it never ends a piece, so that a disk image of nothing but
    zeroes gets large nodes, not the smallest ones.
    """
    start, previous = 0, None
    for end, block in enumerate(blocks, 1):
        count = end - start
        chosen = block[0] < _CUTTING_BYTES and block != previous
        if count == NODE_REFS_MAX or (chosen and count >= NODE_REFS_MIN):
            yield start, end
            start = end
        previous = block
    if start < len(blocks):
        yield start, len(blocks)


def parse_node(data: bytes) -> tuple[BlockRef, ...]:
    """Strictly parse a node's bytes; raises ManifestError on anything else."""
    try:
        match unpack(data, size_max=NODE_SIZE_MAX):
            case list(wire) if 1 <= len(wire) <= NODE_REFS_MAX:
                return parse_refs(wire)
            case _:
                pass
    except ValueError as error:
        raise ManifestError(f"malformed node in a block list: {error}") from None
    raise ManifestError(f"a node of a block list has 1 to {NODE_REFS_MAX} references")


def alike(old: Sequence[BlockRef], new: Sequence[BlockRef]) -> dict[BlockId, BlockRef]:
    """What each reference of `new` that `old` lacks may have been before: the one of `old` that is
    gone, at the same place between those that stayed.
    """
    places = {ref.block: place for place, ref in enumerate(old)}
    stayed = {ref.block for ref in new}
    found: dict[BlockId, BlockRef] = {}
    at, before = 0, None
    for ref in new:
        if ref.block in places:
            at, before = places[ref.block] + 1, None
            continue
        if at < len(old) and old[at].block not in stayed:
            before = old[at]
            at += 1
        if before is not None:  # of more new ones than old ones, the rest are like the last
            found.setdefault(ref.block, before)
    return found


class Walk:
    """Goes through a manifest in the file's order, a node at a time: no I/O, no hashing.

    `wants` names the node that is needed next, `feed` takes its bytes, `blocks` hands out the data
    blocks that are known so far. Who calls `blocks` after each `feed` holds at most one path of
    nodes, however large the file:

        while True:
            for ref, offset in walk.blocks(): ...
            if (wanted := walk.wants()) is None:
                break
            walk.feed(verified bytes of wanted)

    The blocks handed out before an error is raised are no more than a claim; all of them together,
    after `wants` returned None, have the stated size, and lengths that the profile allows.
    """

    def __init__(self, manifest: Manifest, size: int) -> None:
        """Args: `size` is the file's, in bytes.

        Raises:
            ManifestError: as for `feed`.
        """
        if not 0 < size <= FILE_SIZE_MAX:
            raise ManifestError(f"a file with a block list cannot have {size} bytes")
        self._size = size
        self._sizes = SIZES[manifest.profile]
        self._depth = manifest.depth
        self._path: list[list[BlockRef]] = []  # node references still to visit, the next one last
        self._ready: deque[tuple[BlockRef, int]] = deque()
        self._end = 0  # of the data blocks known so far, in bytes
        self._short = False  # one below the minimum was seen: it must be the last
        self._take(manifest.blocks)

    def wants(self) -> BlockRef | None:
        """The node whose bytes are needed next; None when all blocks are known."""
        return self._path[-1][-1] if self._path else None

    def feed(self, data: bytes) -> None:
        """Take the bytes of the node that `wants` named; the caller has checked them against its
        id.

        Raises:
            ManifestError: they are no node, or the list does not fit the file's size or profile.
        """
        assert self._path, "nothing was wanted"
        wanted = self._path[-1].pop()
        if len(data) != wanted.length:
            raise ManifestError(
                f"a node of the block list has {len(data)} bytes, {wanted.length} were announced"
            )
        self._take(parse_node(data))

    def blocks(self) -> Iterator[tuple[BlockRef, int]]:
        """The data blocks that are known and were not handed out yet, each with its offset."""
        while self._ready:
            yield self._ready.popleft()

    def _take(self, refs: Sequence[BlockRef]) -> None:
        """Take references one level below the present path."""
        if len(self._path) < self._depth:
            largest = max(ref.length for ref in refs)
            if largest > NODE_SIZE_MAX:
                raise ManifestError(f"a node has at most {NODE_SIZE_MAX} bytes, not {largest}")
            self._path.append(list(reversed(refs)))
            return
        for ref in refs:
            if self._short or ref.length > self._sizes.maximum:
                raise ManifestError("the block list holds a block of a size that is not allowed")
            self._short = ref.length < self._sizes.minimum
            self._ready.append((ref, self._end))
            self._end += ref.length
        if self._end > self._size:
            raise ManifestError(f"the block list goes beyond the file's {self._size} bytes")
        while self._path and not self._path[-1]:
            self._path.pop()
        if not self._path and self._end != self._size:
            raise ManifestError(
                f"the block list adds up to {self._end} bytes, the file has {self._size}"
            )


def blocks_and_nodes(
    manifest: Manifest, size: int, node: Callable[[BlockId], bytes | None]
) -> Iterator[BlockRef]:
    """All that a file of `size` bytes is made of: its data blocks and the nodes of its list.

    Raises:
        KeyError: a node is not to be had from `node`.
        ManifestError: as for `Walk.feed`.
    """
    walk = Walk(manifest, size)
    while True:
        for ref, _ in walk.blocks():
            yield ref
        wanted = walk.wants()
        if wanted is None:
            return
        data = node(wanted.block)
        if data is None:
            raise KeyError(wanted.block)
        yield wanted
        walk.feed(data)
