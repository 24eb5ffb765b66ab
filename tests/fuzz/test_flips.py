"""One valid object of each type that is signed, sealed or checksummed, each byte changed.

Entries, seals, boxes, blocks, joins, slots, invitations, frames and root markers have the same
beside their other tests; here is what these leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crdt.deposit import sign_deposit, sign_drop, verify_deposit, verify_drop
from crdt.entry import Entry, open_body
from crdt.errors import IntegrityError
from crdt.ids import BlockId, DeviceId, FolderId
from crdt.seal import open_box, open_sealed
from crdt.version_vector import VersionVector
from node.home import Home
from tests.fuzz import valid
from tests.people import secret
from transport.identity import IdentityError, load_or_create
from transport.quic_door import Admit, Door

FLIPS = (0x01, 0x80, 0xFF)


def flipped(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        for flip in FLIPS:
            yield data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]


def refuses(read: Callable[[bytes], object], data: bytes, *errors: type[Exception]) -> None:
    assert read(data)
    for bad in flipped(data):
        try:
            accepted = read(bad)
        except errors:
            continue
        assert not accepted, bad.hex()


def test_an_identity_file(tmp_path: Path) -> None:
    path = tmp_path / "identity"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return load_or_create(str(path), lambda _: pytest.fail("a new identity was made"))

    refuses(read, valid.identity_file(), IdentityError)


DEVICE, SEED = valid.team()[1].device, valid.team()[1].seed
FOLDER, BLOCKS = FolderId(secret("f")), [BlockId(secret("b")), BlockId(secret("c"))]
HAVE = VersionVector({DEVICE: 3})


def test_the_statement_of_a_deposit() -> None:
    digest = secret("digest")
    signature = sign_deposit(SEED, FOLDER, BLOCKS[0], digest)
    block = BLOCKS[0]
    refuses(lambda bad: verify_deposit(DEVICE, FOLDER, block, digest, bad), signature)
    refuses(lambda bad: verify_deposit(DEVICE, FOLDER, block, bad, signature), digest)
    refuses(lambda bad: verify_deposit(DEVICE, FOLDER, BlockId(bad), digest, signature), block)
    refuses(lambda bad: verify_deposit(DEVICE, FolderId(bad), block, digest, signature), FOLDER)
    refuses(lambda bad: verify_deposit(DeviceId(bad), FOLDER, block, digest, signature), DEVICE)


def test_the_statement_of_a_drop() -> None:
    signature = sign_drop(SEED, FOLDER, HAVE, BLOCKS)
    refuses(lambda bad: verify_drop(DEVICE, FOLDER, HAVE, BLOCKS, bad), signature)
    refuses(
        lambda bad: verify_drop(DEVICE, FOLDER, HAVE, [BlockId(bad), BLOCKS[1]], signature),
        BLOCKS[0],
    )
    assert not verify_drop(DEVICE, FOLDER, HAVE, BLOCKS[::-1], signature)
    assert not verify_drop(DEVICE, FOLDER, VersionVector({DEVICE: 4}), BLOCKS, signature)


def test_a_roster_entry_in_the_home(tmp_path: Path) -> None:
    """Whatever changes, what is left was signed."""
    home, alice = Home(tmp_path), valid.team()[0]
    home.save_roster(alice.folder, [alice.arrivals[0].to_bytes()])
    path = home.directory(alice.folder) / "roster"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return home.roster(alice.folder)

    refuses(read, path.read_bytes())


def test_a_tree_entry_that_is_opened_without_its_signature_being_looked_at() -> None:
    """An entry whose author flips bits and signs again: the seal binds what the header says."""
    _, bob = valid.team()
    entry = next(
        e for e in reversed(bob.arrivals) if e.header.device == bob.device and e.header.epoch
    )
    key = bob.keys.epoch(entry.header.epoch)
    assert open_body(entry, key).writes
    for bad in flipped(entry.body):
        with pytest.raises(IntegrityError):
            open_body(Entry(entry.header, entry.signature, bad), key)


def test_what_a_seal_and_a_box_are_bound_to() -> None:
    bob = valid.team()[1]
    corpus = valid.corpus()
    (sealed,), (box,) = corpus["seal"], corpus["box"]
    refuses(lambda bad: open_sealed(secret("key"), sealed, associated=bad), b"here", IntegrityError)
    refuses(lambda bad: open_sealed(bad, sealed, associated=b"here"), secret("key"), IntegrityError)
    refuses(lambda bad: open_box(bob.seed, box, associated=bad), b"here", IntegrityError)


@pytest.mark.slow
def test_a_retry_token() -> None:
    """A sender's proof of its address."""
    sender, door = ("192.0.2.1", 4711), Door()
    retry = door.judge(valid.datagrams()[0], sender, validate=True, now=0.0)
    assert isinstance(retry, bytes)
    at = 6 + retry[5]  # where our connection id stands
    source, token = retry[at + 1 : at + 1 + retry[at]], retry[at + 1 + retry[at] : -16]

    def admits(bad: bytes) -> bool:
        first = b"\xc3\0\0\0\1" + bytes([len(source)]) + source + b"\x08source__"
        length = (0x4000 | len(bad)).to_bytes(2)
        datagram = (first + length + bad + b"\x43\x00").ljust(1200, b"\0")
        return isinstance(door.judge(datagram, sender, validate=True, now=1.0), Admit)

    assert admits(token)
    for at in range(len(token)):
        assert not admits(token[:at] + bytes([token[at] ^ 1]) + token[at + 1 :])
