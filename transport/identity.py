"""A device's identity: an Ed25519 key pair, kept in one small file.

The public half is the `DeviceId` that other devices know us by, so the file is written once and
never again: a file that cannot be read is reported, never replaced, since a new key would be a
new device that nobody has admitted. Synchronous; meant for start-up.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
from collections.abc import Callable
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from crdt.codec import pack, unpack
from crdt.errors import IntegrityError, WorldError
from crdt.ids import DeviceId

SEED_SIZE: Final = 32
FILE_VERSION: Final = 1
FILE_SIZE_MAX: Final = 256  # bytes; a real file has 88
CHECKSUM_SIZE: Final = 16  # finds damage, not attackers: who can write the file has won anyway

_NOT_BEFORE: Final = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER: Final = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)


class IdentityError(IntegrityError):
    """The identity file is there but cannot be trusted."""


class Identity:
    """An Ed25519 key pair. Its `repr` shows the public half only."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self.private_key: Final = private_key
        self.device: Final = DeviceId(private_key.public_key().public_bytes_raw())
        self.certificate: Final = _self_signed(private_key)

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """The identity that `seed` (32 bytes) always gives.

        Raises:
            ValueError: not 32 bytes.
        """
        if len(seed) != SEED_SIZE:
            raise ValueError(f"an identity's seed has {SEED_SIZE} bytes, got {len(seed)}")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes. Never log them."""
        return self.private_key.private_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """An Ed25519 signature (64 bytes) over `data`."""
        return self.private_key.sign(data)

    def __repr__(self) -> str:
        return f"Identity({self.device.short})"


def load_or_create(path: str, random: Callable[[int], bytes]) -> Identity:
    """The identity in the file at `path`; a new one, saved there first, if there is no file.

    Args:
        path: The file; its directory exists.
        random: Gives that many unpredictable bytes; asked only for a new identity.

    Raises:
        IdentityError: the file is damaged, or from a newer version. It was not touched.
        WorldError: it cannot be read or written.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            return _load(path)
        _create(path, random(SEED_SIZE))
        return _load(path)
    except OSError as error:
        raise WorldError(
            f"the identity file {path} cannot be used: {error.strerror or error}. "
            "Nothing was lost; make it readable and writable for this user and start again"
        ) from error


def peer_device(certificate: x509.Certificate) -> DeviceId:
    """The key that a peer's certificate names, which TLS has proven the peer to hold.

    Raises:
        ValueError: not an Ed25519 key, or not signed by that key itself.
    """
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("the certificate's key is not Ed25519")  # noqa: TRY004 - hostile input
    try:
        key.verify(certificate.signature, certificate.tbs_certificate_bytes)
    except InvalidSignature:
        raise ValueError("the certificate is not self-signed") from None
    return DeviceId(key.public_bytes_raw())


def _self_signed(private_key: Ed25519PrivateKey) -> x509.Certificate:
    """The same bytes for the same key, on every start: nothing in it tells more than the key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shoal")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private_key.public_key())
        .serial_number(1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .sign(private_key, None)
    )


def _checksum(seed: bytes) -> bytes:
    return hashlib.blake2b(seed, digest_size=CHECKSUM_SIZE, person=b"shoal identity 1").digest()


def _load(path: str) -> Identity:
    with open(path, "rb") as file:
        data = file.read(FILE_SIZE_MAX + 1)
    try:
        value = unpack(data, size_max=FILE_SIZE_MAX)
    except ValueError:
        raise _damaged(path) from None
    if isinstance(value, dict) and type(value.get("version")) is int:
        if value["version"] > FILE_VERSION:
            raise IdentityError(
                f"the identity file {path} was written by a newer version of shoal. "
                "It was not touched; update shoal and start again"
            )
        seed = value.get("seed")
        if (
            value.keys() == {"version", "seed", "checksum"}
            and value["version"] == FILE_VERSION
            and isinstance(seed, bytes)
            and len(seed) == SEED_SIZE
            and value["checksum"] == _checksum(seed)
        ):
            return Identity.from_seed(seed)
    raise _damaged(path)


def _damaged(path: str) -> IdentityError:
    return IdentityError(
        f"the identity file {path} is damaged. It was not touched, and your synced files are "
        "safe. Put the file back from a backup; or move it away and start again: this device "
        "then gets a new identity and must be invited again"
    )


def _create(path: str, seed: bytes) -> None:
    """Write the file so that it is there whole or not at all, even after a power cut."""
    data = pack({"version": FILE_VERSION, "seed": seed, "checksum": _checksum(seed)})
    temporary = f"{path}.{os.getpid()}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)  # of an earlier attempt that a crash cut short
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, never replaces a file that another process made meanwhile.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
