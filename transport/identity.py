"""A device's identity: an Ed25519 key pair, kept in one small file.

The public half is the `DeviceId` that other devices know us by, so the key is made once and never
again: a file that cannot be read is reported, never replaced, since a new key would be a new device
that nobody has admitted. A passphrase may seal the key (`transport.identity_seal`); setting one
replaces the file by another one with the same key. Synchronous; meant for start-up.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from crdt.codec import pack, unpack
from crdt.errors import CallerError, IntegrityError, WorldError
from crdt.ids import DeviceId
from transport.identity_seal import PassphraseError, check_passphrase, open_seed, seal_seed

SEED_SIZE: Final = 32
FILE_VERSION: Final = 1
SEALED_VERSION: Final = 2  # the seed is under a passphrase
FILE_SIZE_MAX: Final = 256  # bytes; a real file has 88, a sealed one 179
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


def nobody_to_ask() -> str:
    """For where no passphrase can come from."""
    raise PassphraseError(
        "this device's key is under a passphrase, and nobody can be asked for it here. Nothing was "
        "changed. Start at a terminal, or name a file that holds it: --passphrase-file FILE."
    )


def load_or_create(
    path: str, random: Callable[[int], bytes], ask: Callable[[], str] = nobody_to_ask
) -> Identity:
    """The identity in the file at `path`; a new one, saved there first, if there is no file.

    Args:
        path: The file; its directory exists.
        random: Gives that many unpredictable bytes; asked only for a new identity.
        ask: Gives the passphrase; asked only if the file is under one.

    Raises:
        IdentityError: the file is damaged, or from a newer version. It was not touched.
        PassphraseError: the passphrase is wrong, or there is none.
        WorldError: it cannot be read or written.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            return _load(path, ask)
        seed = random(SEED_SIZE)
        _create(path, {"version": FILE_VERSION, "seed": seed, "checksum": _checksum(seed)})
        return _load(path, ask)
    except OSError as error:
        raise WorldError(
            f"the identity file {path} cannot be used: {error.strerror or error}. "
            "Nothing was lost; make it readable and writable for this user and start again"
        ) from error


def set_passphrase(
    path: str,
    random: Callable[[int], bytes],
    ask: Callable[[], str],
    passphrase: str | None,
) -> Identity:
    """Put the key in the file under another passphrase, or under none; the key stays the same.

    The file is replaced once the new one was read back, so it is one or the other, whatever
    happens.

    Raises:
        IdentityError, PassphraseError, WorldError: as for `load_or_create`; the file is as it was.
    """
    try:
        identity = _load(path, ask)
        stored: dict[str, Any] = {"version": FILE_VERSION, "seed": identity.seed}
        if passphrase is not None:
            check_passphrase(passphrase)
            sealed = seal_seed(identity.seed, passphrase, random)
            stored = {"version": SEALED_VERSION, **sealed}
        with _written(path, {**stored, "checksum": _checksum_of(stored)}) as temporary:
            again = _load(temporary, lambda: passphrase or "")
            assert again.device == identity.device
            os.rename(temporary, path)
    except FileNotFoundError:
        raise CallerError(
            f"there is no key at {path} yet; nothing was changed. `shoal up` makes one."
        ) from None
    except OSError as error:
        raise WorldError(
            f"the identity file {path} cannot be replaced: {error.strerror or error}. It is as it "
            "was"
        ) from error
    return identity


def is_sealed(path: str) -> bool:
    """Whether the file is under a passphrase; False where there is none or it is damaged."""
    try:
        value = _read(path)
    except (OSError, IdentityError):
        return False
    return bool(value["version"] == SEALED_VERSION)


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


def _checksum_of(stored: dict[str, Any]) -> bytes:
    secret = stored["seed"] if stored["version"] == FILE_VERSION else pack(stored)
    return _checksum(secret)


def _read(path: str) -> dict[str, Any]:
    """The file's value, whole and of a version that we know."""
    with open(path, "rb") as file:
        data = file.read(FILE_SIZE_MAX + 1)
    try:
        value = unpack(data, size_max=FILE_SIZE_MAX)
    except ValueError:
        raise _damaged(path) from None
    if not isinstance(value, dict) or type(value.get("version")) is not int:
        raise _damaged(path)
    if value["version"] > SEALED_VERSION:
        raise IdentityError(
            f"the identity file {path} was written by a newer version of shoal. "
            "It was not touched; update shoal and start again"
        )
    sealed = value["version"] == SEALED_VERSION
    expected = {"salt", "passes", "memory", "sealed"} if sealed else {"seed"}
    stored = {name: of for name, of in value.items() if name != "checksum"}
    if value.keys() != {"version", "checksum", *expected} or (
        not sealed and not isinstance(value["seed"], bytes)
    ):
        raise _damaged(path)
    if value["checksum"] != _checksum_of(stored):
        raise _damaged(path)
    return stored


def _load(path: str, ask: Callable[[], str]) -> Identity:
    stored = _read(path)
    try:
        if stored["version"] == SEALED_VERSION:
            return Identity.from_seed(open_seed(stored, ask()))
        return Identity.from_seed(stored["seed"])
    except ValueError:
        raise _damaged(path) from None


def _damaged(path: str) -> IdentityError:
    return IdentityError(
        f"the identity file {path} is damaged. It was not touched, and your synced files are "
        "safe. Put the file back from a backup; or move it away and start again: this device "
        "then gets a new identity and must be invited again"
    )


@contextlib.contextmanager
def _written(path: str, value: dict[str, Any]) -> Iterator[str]:
    """A durable private file beside `path` that holds `value`; whoever wants it gives it a name
    within the block, which then is durable too.
    """
    temporary = f"{path}.{os.getpid()}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)  # of an earlier attempt that a crash cut short
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(pack(value))
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _create(path: str, value: dict[str, Any]) -> None:
    """Write the file so that it is there whole or not at all, even after a power cut."""
    # A link, unlike a rename, never replaces a file that another process made meanwhile.
    with _written(path, value) as temporary, contextlib.suppress(FileExistsError):
        os.link(temporary, path)
