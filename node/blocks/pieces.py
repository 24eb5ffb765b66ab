"""Sends a block as what differs from one that the other side holds.

    held      hashes of the *pieces* of some bytes that the asker has, one after another
    answer    canonical msgpack of a list: bytes stand for themselves, [first, count] for pieces

Both sides cut their bytes into pieces where the content says so, so an insertion moves pieces and
changes none. How small they are follows from the length of the block that is wanted, which both
know: small enough that an edit of a few bytes costs little, large enough that the hashes do too.

What is built is a claim, made by a peer or by a chance meeting of short hashes, until it was
compared with the block's id. Pure; the hashes are keyed with the folder's block id key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import blake3

from crdt.codec import pack, unpack
from node.blocks.chunker import KIB, MIB, Cutter, Sizes

HASH_SIZE: Final = 5  # bytes; two of a block's pieces meet by chance once in 10 million blocks
PIECES_MAX: Final = 700  # of what is held: their hashes fit in one small message
OPS_MAX: Final = 1_024  # of an answer; one that is torn to shreds is worth nothing
LENGTH_MIN: Final = KIB  # of a block, in bytes; a smaller one is sent whole

_AVERAGES: Final = ((16 * KIB, 256), (256 * KIB, 512), (MIB, 2 * KIB))  # up to a length, in bytes
_AVERAGE_MAX: Final = 8 * KIB
_SPREAD: Final = 4  # a piece has at least a quarter of the average, at most four times as much


def cut(data: bytes, length: int) -> list[memoryview]:
    """The pieces of `data`, for a block of `length` bytes."""
    average = next((size for most, size in _AVERAGES if length <= most), _AVERAGE_MAX)
    cutter = Cutter(Sizes(average // _SPREAD, average, average * _SPREAD))

    def read_at(offset: int, size: int) -> bytes:
        return data[offset : offset + size]

    return [piece for _, piece in cutter.cut(read_at, 0, len(data))]


def hash_pieces(key: bytes, pieces: Sequence[memoryview]) -> bytes:
    """What the asker sends; `key` is the folder's block id key."""
    return b"".join(_hash(key, piece) for piece in pieces)


def answer(key: bytes, data: bytes, held: bytes) -> bytes:
    """The block `data`, for somebody who has pieces with these hashes.

    Args:
        key: The folder's block id key.
        data: The whole block.
        held: Hashes of `HASH_SIZE` bytes each.
    """
    places: dict[bytes, int] = {}
    for at in range(0, len(held) - HASH_SIZE + 1, HASH_SIZE):
        places.setdefault(held[at : at + HASH_SIZE], at // HASH_SIZE)
    ops: list[bytes | list[int]] = []
    begin = end = 0  # of bytes that are not held, up to here
    for piece in cut(data, len(data)):
        place = places.get(_hash(key, piece))
        if place is not None:
            if begin < end:
                ops.append(data[begin:end])
            begin = end + len(piece)
            last = ops[-1] if ops else None
            if isinstance(last, list) and sum(last) == place:
                last[1] += 1
            else:
                ops.append([place, 1])
        end += len(piece)
    if begin < end:
        ops.append(data[begin:end])
    return pack(ops if len(ops) <= OPS_MAX else [data])


def build(pieces: Sequence[memoryview], answered: bytes, length: int) -> bytes:
    """What an answer claims to be the block of `length` bytes; never much more than that.

    Raises:
        ValueError: it is no answer to what was asked, so its sender's fault.
    """
    match unpack(answered, size_max=answer_size_max(length), items_max=OPS_MAX):
        case list(ops):
            pass
        case _:
            raise ValueError("an answer is a list")
    parts: list[bytes | memoryview] = []
    size = 0
    for op in ops:
        match op:
            case bytes(literal) if literal:
                parts.append(literal)
                size += len(literal)
            case [int(first), int(count)] if 0 <= first < first + count <= len(pieces):
                run = pieces[first : first + count]
                parts += run
                size += sum(map(len, run))
            case _:
                raise ValueError("an answer holds bytes, and pieces that are held")
        if size > length:
            break
    return b"".join(parts)


def answer_size_max(length: int) -> int:
    """Bytes of an answer that are worth their while, for a block of `length` bytes."""
    return length * 3 // 4


def _hash(key: bytes, piece: memoryview) -> bytes:
    return blake3.blake3(piece, key=key).digest(HASH_SIZE)
