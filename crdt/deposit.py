"""Statements with which a member deposits a sealed block at a relay, or lets one go.

A relay has no keys, so it cannot tell whether sealed bytes are the block that they are called.
Whoever deposits them signs that they are: a member that opens them and finds something else knows
from the statement whether the depositor lied or the relay swapped them. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

import blake3

from crdt.codec import pack
from crdt.ids import BlockId, DeviceId, FolderId
from crdt.seal import sign, verify
from crdt.version_vector import VersionVector

_DEPOSIT_CONTEXT = "shoal v1 deposit"
_DROP_CONTEXT = "shoal v1 drop"


def sealed_hash(sealed: bytes) -> bytes:
    """BLAKE3 of sealed bytes: their address at a relay."""
    return blake3.blake3(sealed).digest()


def sign_deposit(seed: bytes, folder: FolderId, block: BlockId, digest: bytes) -> bytes:
    """The signature that the sealed bytes with this hash are `block` of `folder`."""
    return sign(seed, _DEPOSIT_CONTEXT, pack([folder, block, digest]))


def verify_deposit(
    device: DeviceId, folder: FolderId, block: BlockId, digest: bytes, signature: bytes
) -> bool:
    """True when `device` said so."""
    return verify(device, _DEPOSIT_CONTEXT, pack([folder, block, digest]), signature)


def sign_drop(
    seed: bytes, folder: FolderId, have: VersionVector, blocks: Iterable[BlockId]
) -> bytes:
    """The signature that nothing in the log up to `have` needs these blocks any more."""
    return sign(seed, _DROP_CONTEXT, pack([folder, have.to_wire(), list(blocks)]))


def verify_drop(
    device: DeviceId,
    folder: FolderId,
    have: VersionVector,
    blocks: Iterable[BlockId],
    signature: bytes,
) -> bool:
    """True when `device` said so."""
    return verify(device, _DROP_CONTEXT, pack([folder, have.to_wire(), list(blocks)]), signature)
