"""The text of an invitation: one line that a person can paste or show as a QR code.

`shoal1-` and base32 without padding, upper case in a QR code (its alphanumeric mode holds exactly
these characters), any case when read. Inside: canonical msgpack, then 4 bytes of BLAKE3 as a
checksum against typing errors. The text is a secret: whoever holds it can join.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Final

import blake3

from crdt.codec import pack, unpack
from crdt.errors import CallerError
from crdt.ids import DeviceId, FolderId
from crdt.seal import SEED_SIZE, device_of

PREFIX: Final = "shoal1-"
ADDRESSES_MAX: Final = 8  # more would not fit a QR code that phones read well
HOST_SIZE_MAX: Final = 253  # bytes; a DNS name
FOLDER_NAME_SIZE_MAX: Final = 255  # bytes; a directory's name
SIZE_MAX: Final = 1024  # bytes before base32: a QR code of version 28 at most

_CHECKSUM_SIZE: Final = 4
_ALPHABET: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a new device needs: the folder, the secret that lets it in, and whom to call.

    `folder_name` only suggests a name for the directory; it is nothing but text until checked.
    """

    folder: FolderId
    secret: bytes = field(repr=False)
    inviter: DeviceId
    addresses: tuple[Address, ...] = ()
    folder_name: str = ""

    def __post_init__(self) -> None:
        if len(self.secret) != SEED_SIZE:
            raise ValueError(f"an invitation's secret has {SEED_SIZE} bytes")
        if len(self.addresses) > ADDRESSES_MAX:
            raise ValueError(f"an invitation holds at most {ADDRESSES_MAX} addresses")
        for host, port in self.addresses:
            if not host.isascii() or not host.isprintable() or not 0 < len(host) <= HOST_SIZE_MAX:
                raise ValueError("an address needs a host name or a number")
            if type(port) is not int or not 0 < port < 2**16:
                raise ValueError(f"{port!r} is not a port")
        name = self.folder_name
        if not name.isprintable() or len(name.encode()) > FOLDER_NAME_SIZE_MAX:
            raise ValueError("a folder's name is at most 255 bytes of printable text")
        if len(self._packed()) > SIZE_MAX:
            raise ValueError("the invitation is too long; give fewer addresses")

    @property
    def key(self) -> DeviceId:
        """The invitation's public key, by which the roster knows it."""
        return device_of(self.secret)

    @property
    def text(self) -> str:
        """The line that `from_text` reads."""
        data = self._packed()
        return PREFIX + base64.b32encode(data + _checksum(data)).decode().rstrip("=").lower()

    @classmethod
    def from_text(cls, text: str) -> Invitation:
        """Read what a person pasted or typed; case, and white space from wrapping, do not matter.

        Raises:
            CallerError: says what is wrong, and never repeats the text, which is a secret.
        """
        line = "".join(text.split())
        if line[: len(PREFIX)].lower() != PREFIX:
            if line[:5].lower() == "shoal" and "-" in line[5:9]:
                raise CallerError("the invitation was made by another version of shoal; update it")
            raise CallerError(f"this is not an invitation: one starts with '{PREFIX}'")
        letters = line[len(PREFIX) :].upper()
        if not _ALPHABET.issuperset(letters):
            raise CallerError("the invitation holds characters that none has; copy it again")
        if len(letters) > (SIZE_MAX + _CHECKSUM_SIZE) * 8 // 5 + 1:
            raise CallerError("the invitation is too long; copy it again")
        try:
            data = base64.b32decode(letters + "=" * (-len(letters) % 8))
        except ValueError:
            raise CallerError("the invitation is cut short; copy it again, all of it") from None
        content, checksum = data[:-_CHECKSUM_SIZE], data[-_CHECKSUM_SIZE:]
        if _checksum(content) != checksum:
            raise CallerError("the invitation is mistyped or cut short; copy it again, all of it")
        try:
            return cls._parse(content)
        except ValueError as error:
            raise CallerError(f"the invitation is malformed: {error}") from None

    @classmethod
    def _parse(cls, content: bytes) -> Invitation:
        match unpack(content, size_max=SIZE_MAX):
            case [bytes(folder), bytes(secret), bytes(inviter), list(pairs), str(name)]:
                pass
            case _:
                raise ValueError("unexpected content")
        addresses = []
        for pair in pairs:
            match pair:
                case [str(host), int(port)]:
                    addresses.append((host, port))
                case _:
                    raise ValueError("malformed address")
        return cls(FolderId(folder), secret, DeviceId(inviter), tuple(addresses), name)

    def _packed(self) -> bytes:
        addresses = [[host, port] for host, port in self.addresses]
        return pack([self.folder, self.secret, self.inviter, addresses, self.folder_name])


def _checksum(data: bytes) -> bytes:
    # Over the prefix too: another version's text never passes for this one's.
    return blake3.blake3(PREFIX.encode() + data).digest()[:_CHECKSUM_SIZE]
