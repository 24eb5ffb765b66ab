"""The recovery phrase: 24 words on paper that let an owner back into a folder on a new machine.

The phrase is a standing owner invitation of which the person holds the secret half as words (BIP
39, by the `mnemonic` package, with its checksum). Beside 16 bytes of secret it holds the first 16
bytes of the folder's id: whoever is asked says which folder it is, and cannot name one of its own
making.
Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mnemonic import Mnemonic

from crdt.errors import CallerError
from crdt.ids import DeviceId, FolderId
from crdt.seal import derive_key, device_of

WORDS: Final = 24
SECRET_SIZE: Final = 16
PREFIX_SIZE: Final = 16  # bytes of the folder's id; finding another folder with them takes 2**128

_BOOK: Final = Mnemonic("english")


@dataclass(frozen=True, slots=True)
class RecoveryPhrase:
    """What the words say."""

    secret: bytes = field(repr=False)
    folder_prefix: bytes

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_SIZE or len(self.folder_prefix) != PREFIX_SIZE:
            raise ValueError("a recovery phrase holds 16 bytes of secret and 16 of a folder's id")

    @property
    def seed(self) -> bytes:
        """The secret half of the invitation that the phrase is."""
        return derive_key("shoal v1 recovery phrase", self.secret + self.folder_prefix)

    @property
    def key(self) -> DeviceId:
        """Its public half, by which the roster knows it."""
        return device_of(self.seed)

    @property
    def text(self) -> str:
        """The words."""
        return _BOOK.to_mnemonic(self.secret + self.folder_prefix)

    def is_of(self, folder: FolderId) -> bool:
        """True for the folder that the phrase was made for."""
        return folder.startswith(self.folder_prefix)

    @classmethod
    def from_text(cls, text: str) -> RecoveryPhrase:
        """Read what a person typed; case and white space do not matter.

        Raises:
            CallerError: says what is wrong, and never repeats a word.
        """
        words = text.lower().split()
        if len(words) != WORDS:
            raise CallerError(f"a recovery phrase has {WORDS} words, this one has {len(words)}")
        unknown = [n for n, word in enumerate(words, 1) if word not in _BOOK.wordlist]
        if unknown:
            numbers = ", ".join(map(str, unknown))
            raise CallerError(f"the recovery phrase is mistyped: look at word {numbers}")
        if not _BOOK.check(" ".join(words)):
            raise CallerError("the recovery phrase is mistyped: its words do not fit together")
        data = bytes(_BOOK.to_entropy(words))
        return cls(data[:SECRET_SIZE], data[SECRET_SIZE:])
