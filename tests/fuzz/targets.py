"""What is fuzzed: for each target how an input is read, and which errors may come of it.

A target's function returns when the input was accepted, and raises one of its refusals when it was
not. Anything else that it raises is a finding. What was accepted is used as the node would use it.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import blake3

from crdt.acceptance import judge
from crdt.codec import pack, unpack
from crdt.entry import START, Entry, EntryKind, Header, build, open_body
from crdt.errors import CallerError, IntegrityError, PeerError
from crdt.ids import ROOT, DeviceId
from crdt.invitation import PREFIX, Invitation
from crdt.roster import Roster
from crdt.roster_ops import parse_ops
from crdt.seal import open_box, open_sealed, pad, seal, sign
from crdt.slot import Manifest, Profile, Slot, parse_refs
from crdt.tree import view
from node.blocks.codec import EPOCH_SIZE, open_any, open_block
from node.blocks.manifest import ManifestError, Walk
from node.files.ignore import TEXT_BYTES_MAX, IgnoreRules
from node.files.memory import MemoryFileSystem
from node.files.root_marker import DamagedRootMarkerError, read_root_marker
from node.history.settings import FILE, load_policy
from node.home import FolderConfig, Home
from tests.fuzz import valid
from tests.people import secret
from transport.frames import FrameDecoder
from transport.identity import IdentityError, load_or_create
from transport.messages import CODE_MAX
from transport.quic_door import Door, destination_cid

SENDER: Final = ("192.0.2.1", 4711)


@dataclass(frozen=True)
class Target:
    """One reader. `packed` is where canonical msgpack begins in its inputs, None for none."""

    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    packed: int | None = 0


# --- what peers and relays send ------------------------------------------------------------------


def frame(data: bytes) -> None:
    """A stream's bytes, after the number of the stream; in one piece and in several."""
    expected = valid.STREAMS[int.from_bytes(data[:1]) % len(valid.STREAMS)]
    decoder, pieces = FrameDecoder(expected), FrameDecoder(expected)
    decoder.feed(data[1:])
    for at in range(1, len(data), max(1, len(data) // 7)):
        pieces.feed(data[at : at + max(1, len(data) // 7)])
    assert pieces.in_frame == decoder.in_frame


def message(data: bytes) -> None:
    """The body of a frame, after the numbers of its stream and its type."""
    head = data[:2].ljust(2, b"\0")
    frame(head[:1] + len(data[2:]).to_bytes(4, "big") + head[1:] + data[2:])


def entry(data: bytes) -> None:
    """An entry as it travels, judged by somebody who knows the folder."""
    _judge(Entry.from_bytes(data))


def header(data: bytes) -> None:
    """The header of an entry whose author is a member, and hostile: the signature is right."""
    body = valid.team()[1].arrivals[-1].body
    parsed = Header.from_bytes(data)
    parsed = replace(parsed, body_hash=blake3.blake3(body).digest())
    signature = sign(valid.team()[1].seed, "shoal v1 entry header", parsed.packed)
    _judge(Entry.from_bytes(Entry(parsed, signature, body).to_bytes()))


def _judge(one: Entry) -> None:
    alice, _ = valid.team()
    judge(
        one,
        positions=alice.positions,
        roster=alice.roster,
        own=alice.device,
        known_hash=alice.known_hash,
    )


def stored_body(data: bytes) -> None:
    """What a member with the key seals into a tree entry."""
    alice, bob = valid.team()
    key = valid.current_key()
    position = bob.positions.get(bob.device, START)
    binding = pack(["shoal v1 tree body", key.folder, bob.device, position.seq + 1, key.number])
    made = build(
        bob.seed,
        folder=key.folder,
        after=position,
        deps=bob.have,
        lamport=bob.lamport + 1,
        kind=EntryKind.TREE,
        body=seal(key.entry_key, pad(data), nonce=valid.NONCE, associated=binding),
        epoch=key.number,
    )
    opened = open_body(Entry.from_bytes(made.to_bytes()), key)
    state = {(item, bob.device): slot for item, slot in opened.writes}
    other = {(item, alice.device): slot for item, slot in opened.writes[::2]}
    for _ in view({**state, **other}).children(ROOT):
        pass


def body(data: bytes) -> None:
    """The same, stored as it is."""
    stored_body(b"\0" + data)


def slot(data: bytes) -> None:
    """A slot, as in the index."""
    found = Slot.from_wire(unpack(data, size_max=valid_size(data)))
    if pack(found.to_wire()) != data:
        raise AssertionError("another slot was read than was written")


def valid_size(data: bytes) -> int:
    """A limit that an input of ours never reaches."""
    return max(len(data), 1)


def roster(data: bytes) -> None:
    """The body of a roster entry, signed by an owner, and the roster that comes of it."""
    alice, _ = valid.team()
    ops = parse_ops(data)
    entries = [one for one in alice.arrivals if one.header.kind is EntryKind.ROSTER]
    made = Roster.fold(alice.folder, [*entries, alice.sign(data)])
    made.keys(alice.seed)
    for op in ops:
        for name in ("device", "key", "owner"):
            device = getattr(op, name, None)
            if isinstance(device, DeviceId):
                made.lacking(device)
                made.counts(device, 3)


def manifest(data: bytes) -> None:
    """A file's block list with the nodes that a peer sends for it."""
    match unpack(data, size_max=valid_size(data)):
        case [int(size), int(profile), int(depth), list(refs), list(nodes)]:
            walk = Walk(Manifest(Profile(profile), depth, parse_refs(refs)), size)
        case _:
            raise ValueError("no manifest")
    for node in nodes:
        list(walk.blocks())
        if walk.wants() is None:
            break
        walk.feed(node if isinstance(node, bytes) else b"")


def block(data: bytes) -> None:
    """A sealed block from a peer, a relay or the store."""
    keys, ref = valid.team()[1].keys, valid.block_ref()
    with contextlib.suppress(IntegrityError):
        open_any(keys, ref.block, data)
    assert open_block(keys, ref, data) == valid.block_plain()


def stored_block(data: bytes) -> None:
    """What a member with the key seals as a block."""
    key, ref = valid.current_key(), valid.block_ref()
    binding = pack(["shoal v1 block", key.folder, key.number, ref.block])
    sealed = seal(key.block_key, pad(data), nonce=valid.NONCE, associated=binding)
    block(key.number.to_bytes(EPOCH_SIZE) + sealed)


def sealed(data: bytes) -> None:
    """A seal under a key."""
    open_sealed(secret("key"), data, associated=b"here")


def box(data: bytes) -> None:
    """A seal to a device."""
    open_box(valid.team()[1].seed, data, associated=b"here")


@functools.cache
def door() -> Door:
    """One for all datagrams; its key is the one thing here that is not from a seed."""
    return Door()


def datagram(data: bytes) -> None:
    """A datagram from anywhere."""
    destination_cid(data)
    for validate in (False, True):
        answer = door().judge(data, SENDER, validate=validate, now=1.0)
        assert not isinstance(answer, bytes) or len(answer) <= len(data), "an amplifier"


# --- what people paste ---------------------------------------------------------------------------


def invitation(data: bytes) -> None:
    """The text of an invitation."""
    found = Invitation.from_text(data.decode("utf-8", "surrogateescape"))
    assert Invitation.from_text(found.text) == found


def invitation_content(data: bytes) -> None:
    """What is inside of one, with a right checksum."""
    checksum = blake3.blake3(PREFIX.encode() + data).digest()[:4]
    text = base64.b32encode(data + checksum).decode().rstrip("=")
    found = Invitation.from_text(PREFIX + text)
    assert found.key


# --- what lies on a disk -------------------------------------------------------------------------


@functools.cache
def scratch() -> Path:
    """A directory of this process; gone with it."""
    directory = tempfile.TemporaryDirectory(prefix="shoal-fuzz-")
    _kept.append(directory)
    return Path(directory.name)


_kept: list[object] = []


def identity(data: bytes) -> None:
    """The identity file."""
    path = scratch() / "identity"
    path.write_bytes(data)
    found = load_or_create(str(path), lambda _: b"")
    assert path.read_bytes() == data, "it was touched"
    assert found.sign(b"x")


def root_marker(data: bytes) -> None:
    """`.shoal/root`."""
    fs = MemoryFileSystem()
    fs.mkdir(".shoal")
    fs.write_file(".shoal/root", data)
    assert read_root_marker(fs) is not None


def configuration(data: bytes) -> None:
    """A folder's configuration in the home."""
    home = Home(scratch() / "home")
    path = home.directory(valid.team()[0].folder) / "config"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    for config in home.folders():
        assert FolderConfig.from_bytes(config.to_bytes()) == config
        for host, port in config.peers:
            assert host.isprintable()
            assert 0 < port <= CODE_MAX
        assert len(config.marker) == 16
        assert config.invitation_seed is None or len(config.invitation_seed) == 32


def roster_file(data: bytes) -> None:
    """A folder's roster in the home: whatever is wrong with it, what is left can be used."""
    alice, _ = valid.team()
    home = Home(scratch() / "home")
    path = home.directory(alice.folder) / "roster"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    known = {one.to_bytes() for one in alice.arrivals}
    for one in home.roster(alice.folder):
        assert one in known, "an entry that nobody signed"
        Entry.from_bytes(one)


def history_settings(data: bytes) -> None:
    """`history.json`: never more than a warning."""
    (scratch() / FILE).write_bytes(data)
    policy = load_policy(scratch())
    assert policy.limit(10**12) >= 0


def ignore_file(data: bytes) -> None:
    """`.shoalignore`, which is synced: never more than warnings."""
    rules = IgnoreRules.parse(data[: TEXT_BYTES_MAX + 1].decode(errors="replace"))
    for path in ("a", "docs/a/b/c.pdf", "build", "x/node_modules/y/x", "a" * 60, "ab/" * 20 + "x"):
        rules.ignores(path, is_directory=False)
        rules.ignores(path, is_directory=True)


TARGETS: Final[dict[str, Target]] = {
    "frame": Target(frame, (PeerError,), None),
    "message": Target(message, (PeerError,), 2),
    "entry": Target(entry, (ValueError,)),
    "header": Target(header, (ValueError,)),
    "body": Target(body, (PeerError,)),
    "stored body": Target(stored_body, (PeerError,), None),
    "slot": Target(slot, (ValueError,)),
    "roster": Target(roster, (ValueError,)),
    "roster file": Target(roster_file, ()),
    "manifest": Target(manifest, (ValueError, ManifestError)),
    "block": Target(block, (IntegrityError,), None),
    "stored block": Target(stored_block, (IntegrityError,), None),
    "seal": Target(sealed, (IntegrityError,), None),
    "box": Target(box, (IntegrityError,), None),
    "invitation": Target(invitation, (CallerError,), None),
    "invitation content": Target(invitation_content, (CallerError,)),
    "root marker": Target(root_marker, (DamagedRootMarkerError,), None),
    "identity": Target(identity, (IdentityError,)),
    "configuration": Target(configuration, (IntegrityError,)),
    "history settings": Target(history_settings, (), None),
    "datagram": Target(datagram, (), None),
    "ignore file": Target(ignore_file, (), None),
}
