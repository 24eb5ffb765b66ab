"""Identifiers. Each is its own subclass of `bytes`, so it hashes and sorts at C speed, binds to
SQLite as it is, and is never confused with loose bytes by the type checker.

`DeviceId` doubles as the Ed25519 public key that it names.
"""

from __future__ import annotations

import base64
from typing import ClassVar, Final, Self

import blake3

DEVICE_ID_SIZE: Final = 32
FOLDER_ID_SIZE: Final = 32
ITEM_ID_SIZE: Final = 16
BLOCK_ID_SIZE: Final = 32

_GROUP: Final = 13  # characters of base32 before each check character of a device id's text
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


class _Id(bytes):
    """Bytes of one fixed size."""

    __slots__ = ()
    size: ClassVar[int]

    def __new__(cls, value: bytes) -> Self:
        """Raises ValueError when `value` is not exactly `size` bytes."""
        if len(value) != cls.size:
            raise ValueError(f"{cls.__name__} needs {cls.size} bytes, got {len(value)}")
        return super().__new__(cls, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()[:10]})"

    def __str__(self) -> str:
        return self.hex()


class DeviceId(_Id):
    """A device's Ed25519 public key."""

    __slots__ = ()
    size = DEVICE_ID_SIZE

    @property
    def text(self) -> str:
        """Base32 in four groups of 13 characters, each followed by its Luhn mod 32 check
        character.
        """
        plain = base64.b32encode(self).decode().rstrip("=")
        groups = [plain[i : i + _GROUP] for i in range(0, len(plain), _GROUP)]
        return "-".join(group + _check_character(group) for group in groups)

    @property
    def short(self) -> str:
        """The first 7 characters of the text: enough to tell a folder's devices apart."""
        return base64.b32encode(self).decode()[:7]

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse `text`; case and dashes do not matter.

        Raises:
            ValueError: wrong length, foreign characters, or a check character that does not match.
        """
        compact = text.upper().replace("-", "").replace(" ", "")
        step = _GROUP + 1
        if len(compact) != 4 * step or any(c not in _ALPHABET for c in compact):
            raise ValueError(
                "a device id has 56 letters and digits (A-Z, 2-7), in four groups of 14"
            )
        plain = ""
        for i in range(0, len(compact), step):
            group, check = compact[i : i + _GROUP], compact[i + _GROUP]
            if _check_character(group) != check:
                raise ValueError(f"device id is mistyped near '{group[:7]}...'")
            plain += group
        return cls(base64.b32decode(plain + "=" * (-len(plain) % 8)))

    def __str__(self) -> str:
        return self.text


class FolderId(_Id):
    """Hash of the folder's genesis record."""

    __slots__ = ()
    size = FOLDER_ID_SIZE


class ItemId(_Id):
    """A file, directory or symlink; random at creation, kept through renames and moves."""

    __slots__ = ()
    size = ITEM_ID_SIZE


class BlockId(_Id):
    """BLAKE3 of a block's plaintext, keyed with the folder's id key."""

    __slots__ = ()
    size = BLOCK_ID_SIZE


def _check_character(group: str) -> str:
    """Luhn mod N with N = 32: finds every single wrong character and most swaps of neighbours."""
    total, factor = 0, 2
    for character in reversed(group):
        addend = factor * _ALPHABET.index(character)
        total += addend // 32 + addend % 32
        factor = 3 - factor
    return _ALPHABET[-total % 32]


ROOT: Final = ItemId(bytes(ITEM_ID_SIZE))
"""The folder's top directory. It has no slots and no placement."""

RECOVERED: Final = ItemId(blake3.blake3(b"shoal recovered directory v1").digest()[:ITEM_ID_SIZE])
"""Where an item goes that has no place left (DESIGN section 4). The same on every device."""
