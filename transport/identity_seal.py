"""A device's seed under a passphrase: Argon2id, then XSalsa20-Poly1305 (PyNaCl's SecretBox).

Whoever copies the file must try passphrases one by one, each for the price below. What it costs
stands in the file, so that later files can cost more. Pure but for the randomness it is given.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any, Final

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox

from crdt.errors import CallerError

PASSES: Final = 4  # over the memory: about 0.3 s
MEMORY_SIZE: Final = 64 * 1024 * 1024  # bytes; a small node has that to spare for a moment
PASSES_MAX: Final = 64
MEMORY_SIZE_MAX: Final = 1024 * 1024 * 1024
PASSPHRASE_MIN: Final = 8  # characters; fewer are tried in an hour, whatever each of them costs
PASSPHRASE_MAX: Final = 1024

NOTHING: Final = "Nothing was changed."


class PassphraseError(CallerError):
    """The passphrase is wrong, none was given, or it is no good as one."""

    exit_code = 21


def check_passphrase(passphrase: str) -> None:
    """Whether it can be set.

    Raises:
        PassphraseError: it is too short or too long.
    """
    if not PASSPHRASE_MIN <= len(passphrase) <= PASSPHRASE_MAX:
        raise PassphraseError(
            f"a passphrase has {PASSPHRASE_MIN} to {PASSPHRASE_MAX} characters. {NOTHING}"
        )


def seal_seed(seed: bytes, passphrase: str, random: Callable[[int], bytes]) -> dict[str, Any]:
    """What to store of `seed`, to be opened by `open_seed` with the same passphrase."""
    salt = random(argon2id.SALTBYTES)
    key = _key(passphrase, salt, PASSES, MEMORY_SIZE)
    sealed = SecretBox(key).encrypt(seed, random(SecretBox.NONCE_SIZE))
    return {"salt": salt, "passes": PASSES, "memory": MEMORY_SIZE, "sealed": bytes(sealed)}


def open_seed(stored: dict[str, Any], passphrase: str) -> bytes:
    """The seed.

    Raises:
        PassphraseError: the passphrase is wrong.
        ValueError: `stored` is not what `seal_seed` gives.
    """
    salt, sealed = stored.get("salt"), stored.get("sealed")
    passes, memory = stored.get("passes"), stored.get("memory")
    if not isinstance(salt, bytes) or len(salt) != argon2id.SALTBYTES:
        raise ValueError("no salt")
    if type(passes) is not int or not 1 <= passes <= PASSES_MAX:
        raise ValueError("no number of passes")
    if type(memory) is not int or not 8192 <= memory <= MEMORY_SIZE_MAX:
        raise ValueError("no size of memory")
    if not isinstance(sealed, bytes):
        raise ValueError("nothing is sealed")  # noqa: TRY004 - hostile input
    try:
        return SecretBox(_key(passphrase, salt, passes, memory)).decrypt(sealed)
    except CryptoError:
        raise PassphraseError(
            f"the passphrase is wrong. {NOTHING} Without it this device's key cannot be used; if "
            "it is lost, remove the device from another one and join again with another home."
        ) from None


def _key(passphrase: str, salt: bytes, passes: int, memory: int) -> bytes:
    # Keyboards differ in how they write an é.
    text = unicodedata.normalize("NFKC", passphrase).encode()
    return bytes(argon2id.kdf(SecretBox.KEY_SIZE, text, salt, opslimit=passes, memlimit=memory))
