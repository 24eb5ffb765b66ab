"""Keys, signatures, seals: everything cryptographic that a folder's format rests on.

Pure: nonces and the seeds of ephemeral keys are arguments, so a test can repeat every byte. Failure
is an `IntegrityError` that never says more than that the seal or signature does not hold. Secrets
do not appear in any `repr`.

Sources: XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha), Ed25519 (RFC 8032), X25519 (RFC 7748), BLAKE3
`derive_key`, all through libsodium and the blake3 package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import blake3
import nacl.bindings
import nacl.exceptions

from crdt.codec import pack
from crdt.errors import IntegrityError
from crdt.ids import DeviceId, FolderId

KEY_SIZE: Final = 32
SEED_SIZE: Final = 32
NONCE_SIZE: Final = 24
SIGNATURE_SIZE: Final = 64
TAG_SIZE: Final = 16
SEAL_OVERHEAD: Final = 1 + NONCE_SIZE + TAG_SIZE
BOX_OVERHEAD: Final = 1 + 32 + TAG_SIZE

_XCHACHA20_POLY1305: Final = 1  # algorithm byte of a seal
_X25519_XCHACHA20_POLY1305: Final = 1  # algorithm byte of a sealed box


def derive_key(context: str, material: bytes) -> bytes:
    """32 bytes for one use; `context` names the use and is never used for anything else."""
    return blake3.blake3(material, derive_key_context=context).digest()


# --- signatures ------------------------------------------------------------------------------


def device_of(seed: bytes) -> DeviceId:
    """The public key that belongs to the Ed25519 `seed` (32 bytes)."""
    public, _ = nacl.bindings.crypto_sign_seed_keypair(seed)
    return DeviceId(public)


def sign(seed: bytes, context: str, data: bytes) -> bytes:
    """Ed25519 signature (64 bytes) of `data` for the use that `context` names; deterministic."""
    _, secret = nacl.bindings.crypto_sign_seed_keypair(seed)
    signed: bytes = nacl.bindings.crypto_sign(_signed(context, data), secret)
    return signed[:SIGNATURE_SIZE]


def verify(device: DeviceId, context: str, data: bytes, signature: bytes) -> bool:
    """True when `signature` was made by `device` over this very context and data."""
    if len(signature) != SIGNATURE_SIZE:
        return False
    try:
        nacl.bindings.crypto_sign_open(signature + _signed(context, data), bytes(device))
    except (nacl.exceptions.BadSignatureError, nacl.exceptions.CryptoError, ValueError):
        return False
    return True


def is_public_key(device: DeviceId) -> bool:
    """True when something can be sealed to `device`: a point of the curve's main subgroup."""
    return bool(nacl.bindings.crypto_core_ed25519_is_valid_point(bytes(device)))


def _signed(context: str, data: bytes) -> bytes:
    name = context.encode()
    return bytes([len(name)]) + name + data


# --- seals -----------------------------------------------------------------------------------


def seal(key: bytes, plaintext: bytes, *, nonce: bytes, associated: bytes) -> bytes:
    """Encrypt and authenticate.

    Args:
        key: 32 bytes.
        plaintext: Compressed and padded already, where sizes shall tell little.
        nonce: 24 random bytes, never used twice with one key.
        associated: What the seal is bound to (folder, epoch, position); not stored.
    Returns:
        Algorithm byte, nonce, ciphertext with tag: `SEAL_OVERHEAD` bytes more than `plaintext`.
    """
    if len(key) != KEY_SIZE or len(nonce) != NONCE_SIZE:
        raise ValueError("a seal needs a key of 32 bytes and a nonce of 24")
    head = bytes([_XCHACHA20_POLY1305])
    sealed: bytes = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
        plaintext, head + associated, nonce, key
    )
    return head + nonce + sealed


def open_sealed(key: bytes, sealed: bytes, *, associated: bytes) -> bytes:
    """Reverse `seal`.

    Raises:
        IntegrityError: wrong key, wrong `associated`, a changed byte, or an unknown algorithm.
    """
    if len(sealed) < SEAL_OVERHEAD:
        raise IntegrityError(f"a seal has at least {SEAL_OVERHEAD} bytes, got {len(sealed)}")
    if sealed[0] != _XCHACHA20_POLY1305:
        raise IntegrityError(f"unknown sealing algorithm {sealed[0]}")
    nonce, ciphertext = sealed[1 : 1 + NONCE_SIZE], sealed[1 + NONCE_SIZE :]
    try:
        plaintext: bytes = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
            ciphertext, sealed[:1] + associated, nonce, key
        )
    except nacl.exceptions.CryptoError:
        raise IntegrityError("the seal does not hold") from None
    return plaintext


def seal_to(recipient: DeviceId, plaintext: bytes, *, seed: bytes, associated: bytes) -> bytes:
    """Seal to whoever holds the secret half of `recipient`.

    The ephemeral key and so the key of the seal follow from the seed and from everything that is
    sealed, so one fresh `seed` serves many recipients, and a seed used twice by mistake does no
    harm.

    Args:
        recipient: An Ed25519 public key; X25519 is derived from it.
        plaintext: A key, usually.
        seed: 32 unpredictable bytes.
        associated: What the box is bound to; not stored.
    Returns:
        Algorithm byte, ephemeral public key, ciphertext with tag; `BOX_OVERHEAD` bytes more.
    Raises:
        ValueError: `recipient` is no valid public key.
    """
    if len(seed) != SEED_SIZE:
        raise ValueError("a sealed box needs a seed of 32 bytes")
    if not is_public_key(recipient):
        raise ValueError(f"{recipient.short} is not a valid public key")
    inputs = pack([seed, recipient, plaintext, associated])
    secret = derive_key("shoal v1 sealed box ephemeral", inputs)
    public: bytes = nacl.bindings.crypto_scalarmult_base(secret)
    theirs = nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(bytes(recipient))
    shared: bytes = nacl.bindings.crypto_scalarmult(secret, theirs)
    head = bytes([_X25519_XCHACHA20_POLY1305])
    sealed: bytes = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
        plaintext, head + associated, bytes(NONCE_SIZE), _box_key(shared, public, recipient)
    )
    return head + public + sealed


def open_box(seed: bytes, box: bytes, *, associated: bytes) -> bytes:
    """Reverse `seal_to` with the recipient's Ed25519 `seed`.

    Raises:
        IntegrityError: sealed to somebody else, wrong `associated`, or a changed byte.
    """
    if len(box) < BOX_OVERHEAD or box[0] != _X25519_XCHACHA20_POLY1305:
        raise IntegrityError("not a sealed box that this version knows")
    public, ciphertext = box[1:33], box[33:]
    recipient, secret = nacl.bindings.crypto_sign_seed_keypair(seed)
    mine = nacl.bindings.crypto_sign_ed25519_sk_to_curve25519(secret)
    try:
        # A point of low order gives an all-zero secret, which libsodium refuses (RuntimeError).
        shared: bytes = nacl.bindings.crypto_scalarmult(mine, public)
        plaintext: bytes = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
            ciphertext,
            box[:1] + associated,
            bytes(NONCE_SIZE),
            _box_key(shared, public, DeviceId(recipient)),
        )
    except (nacl.exceptions.CryptoError, RuntimeError):
        raise IntegrityError("the sealed box does not open") from None
    return plaintext


def _box_key(shared: bytes, ephemeral: bytes, recipient: DeviceId) -> bytes:
    # The key is fresh for every box, so the nonce may be constant.
    return derive_key("shoal v1 sealed box", shared + ephemeral + recipient)


# --- sizes -----------------------------------------------------------------------------------


def padded_size(size: int) -> int:
    """Round a sealed object's size up so that it tells little about the content.

    Args:
        size: Bytes, 1 or more.
    Returns:
        Bytes; at most 12 % above `size`.
    Raises:
        ValueError: `size` is below 1.
    Source: Padmé, Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and
    Communication with PURBs", PETS 2019.
    """
    if size < 1:
        raise ValueError(f"a size to pad is 1 or more, got {size}")
    exponent = size.bit_length() - 1
    free_bits = max(0, exponent - exponent.bit_length())
    mask = (1 << free_bits) - 1
    return (size + mask) & ~mask


def pad(data: bytes) -> bytes:
    """`data`, a byte 0x80, and zeroes up to a Padmé size."""
    return data + b"\x80" + bytes(padded_size(len(data) + 1) - len(data) - 1)


def unpad(padded: bytes) -> bytes:
    """Reverse `pad`; raises ValueError when the padding is not the one that `pad` makes."""
    data = padded.rstrip(b"\0")
    if not data.endswith(b"\x80") or padded_size(len(data)) != len(padded):
        raise ValueError("malformed padding")
    return data[:-1]


# --- a folder's keys -------------------------------------------------------------------------


@dataclass(frozen=True)
class EpochKey:
    """The secret of one epoch, and the keys that follow from it, one for each use.

    `number` names the epoch in headers. It is the start of `commitment`, a hash of the secret, so
    that two epochs begun at once have two names, and nobody can pass different secrets under one.
    """

    folder: FolderId
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_SIZE:
            raise ValueError(f"an epoch's secret has {KEY_SIZE} bytes, got {len(self.secret)}")

    @cached_property
    def commitment(self) -> bytes:
        """32 bytes that bind the epoch to its secret and tell nothing about it."""
        return self._derive("shoal v1 epoch commitment")

    @cached_property
    def number(self) -> int:
        """The epoch's name: 1..2**48. Numbers are not ordered in time; the roster is."""
        return epoch_number(self.commitment)

    @cached_property
    def entry_key(self) -> bytes:
        """Seals the bodies of tree entries."""
        return self._derive("shoal v1 entry body")

    @cached_property
    def block_key(self) -> bytes:
        """Seals blocks."""
        return self._derive("shoal v1 block")

    @cached_property
    def pack_name_key(self) -> bytes:
        """Names packs of small blocks at a relay."""
        return self._derive("shoal v1 pack name")

    @cached_property
    def previous_key(self) -> bytes:
        """Seals the secrets of the epochs before, so that members can read back to the start."""
        return self._derive("shoal v1 previous epoch")

    @cached_property
    def block_id_key(self) -> bytes:
        """Keys the hash that names blocks. Only the first epoch's is used, for the folder's
        life.
        """
        return self._derive("shoal v1 block id")

    def _derive(self, context: str) -> bytes:
        return derive_key(context, self.secret + self.folder)


def epoch_number(commitment: bytes) -> int:
    """The epoch's name in headers: the first 6 bytes of its commitment, plus 1 (0 means none)."""
    return int.from_bytes(commitment[:6]) + 1


@dataclass(frozen=True)
class FolderKeys:
    """The keys that this device has to one folder.

    `first` is the epoch of genesis. `current` is the one for new writes; None when every epoch
    that we can open is also open to somebody who was removed: start a new one before writing.
    """

    folder: FolderId
    epochs: Mapping[int, EpochKey] = field(repr=False)
    first: int
    current: int | None

    @property
    def block_id_key(self) -> bytes:
        """Keys the hash that names this folder's blocks.

        Raises:
            IntegrityError: the first epoch is not open to us (yet).
        """
        return self.epoch(self.first).block_id_key

    def epoch(self, number: int) -> EpochKey:
        """The key of epoch `number`; raises IntegrityError when it is not open to us (yet)."""
        key = self.epochs.get(number)
        if key is None:
            raise IntegrityError(f"the key of epoch {number} has not reached this device")
        return key
