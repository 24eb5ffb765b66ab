"""A spoken code: three words that let a device on the same network have an invitation.

Sans-IO, one object a side and an attempt; messages go in and come out as bytes. SPAKE2 (the
`spake2` package) turns the words into a key that only who knew them has, and that tells a listener
nothing about them, not even to try words at home: each attempt on either side is one guess.

    new device                                   inviter
    pake(words)                  ----->
                                 <-----          pake(words)
    proof(key)                   ----->          wrong: the code is void
                                 <-----          the invitation, sealed with the key

Both sides' TLS keys go into the exchange, so nobody can stand between. The new device proves
itself first: whoever guesses wrong learns no more than that. Words are of the BIP 39 list (2,048):
33 bits.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final

import blake3
from mnemonic import Mnemonic
from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError
from spake2.ed25519_basic import NotOnCurve

from crdt.codec import pack
from crdt.errors import CallerError, IntegrityError, PeerError
from crdt.ids import DeviceId
from crdt.seal import derive_key, open_sealed, seal

WORDS: Final = 3
LIST: Final = tuple(Mnemonic("english").wordlist)
_WORDS_CONTEXT: Final = "shoal v1 spoken code"


def make_code(random: Callable[[int], bytes]) -> str:
    """Three words, such as `ocean-violin-tiger`; `random(n)` gives n random bytes."""
    # 2,048 divides 65,536: every word is equally likely.
    drawn = random(2 * WORDS)
    numbers = (int.from_bytes(drawn[i : i + 2], "big") for i in range(0, 2 * WORDS, 2))
    return "-".join(LIST[number % len(LIST)] for number in numbers)


def read_code(text: str) -> str | None:
    """The code that a person typed, None when it is none: not three words, or words of no list."""
    words = text.lower().replace("-", " ").split()
    if len(words) != WORDS or not all(word in LIST for word in words):
        return None
    return "-".join(words)


class Guest:
    """The new device's side."""

    def __init__(
        self, code: str, *, guest: DeviceId, inviter: DeviceId, entropy: Callable[[int], bytes]
    ) -> None:
        """Args: `guest` and `inviter` are the two TLS keys of the connection."""
        self._ids = (guest, inviter)
        self._pake = SPAKE2_A(
            code.encode(), idA=bytes(guest), idB=bytes(inviter), entropy_f=entropy
        )
        self._key = b""

    def first(self) -> bytes:
        """What to send first."""
        started: bytes = self._pake.start()
        return started

    def prove(self, answer: bytes) -> bytes:
        """What to send in return for the inviter's answer."""
        self._key = _finish(self._pake, answer)
        return _proof(self._key, self._ids)

    def open(self, sealed: bytes) -> str:
        """The invitation's text.

        Raises:
            CallerError: the two sides did not have the same words.
        """
        try:
            return open_sealed(
                _seal_key(self._key), sealed, associated=_binding(self._ids)
            ).decode()
        except (IntegrityError, UnicodeDecodeError):
            raise CallerError("the words are not the ones that were said") from None


class Host:
    """The inviter's side."""

    def __init__(
        self, code: str, *, guest: DeviceId, inviter: DeviceId, entropy: Callable[[int], bytes]
    ) -> None:
        """As for `Guest`."""
        self._ids = (guest, inviter)
        self._pake = SPAKE2_B(
            code.encode(), idA=bytes(guest), idB=bytes(inviter), entropy_f=entropy
        )
        self._key = b""

    def answer(self, first: bytes) -> bytes:
        """What to send in return for the guest's first message. From now on the code is spent."""
        started: bytes = self._pake.start()
        self._key = _finish(self._pake, first)
        return started

    def seal(self, proof: bytes, invitation: str, *, nonce: bytes) -> bytes | None:
        """The sealed invitation, None when the guest did not know the words."""
        if not hmac.compare_digest(proof, _proof(self._key, self._ids)):
            return None
        sealed_with = _seal_key(self._key)
        binding = _binding(self._ids)
        return seal(sealed_with, invitation.encode(), nonce=nonce, associated=binding)


def _finish(pake: SPAKE2_A | SPAKE2_B, message: bytes) -> bytes:
    try:
        key: bytes = pake.finish(message)
    except (SPAKEError, NotOnCurve, ValueError, AssertionError) as error:
        raise PeerError(f"sent no step of a spoken code: {error}") from None
    return key


def _proof(key: bytes, ids: tuple[DeviceId, DeviceId]) -> bytes:
    proof_key = derive_key("shoal v1 spoken code proof", key)
    return blake3.blake3(_binding(ids), key=proof_key).digest()


def _seal_key(key: bytes) -> bytes:
    return derive_key("shoal v1 spoken code seal", key)


def _binding(ids: tuple[DeviceId, DeviceId]) -> bytes:
    return pack([_WORDS_CONTEXT, *ids])
