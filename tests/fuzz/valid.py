"""The valid objects that fuzzing starts from, and the members that made them. All from fixed seeds.

`python -m tests.fuzz corpus` writes them to `tests/fuzz/corpus`, one directory a target.
"""

from __future__ import annotations

import base64
import functools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import zstandard
from aioquic.quic.packet import encode_quic_retry

from crdt.codec import pack
from crdt.deposit import sign_deposit
from crdt.entry import EntryKind
from crdt.ids import ROOT, BlockId, ItemId
from crdt.invitation import PREFIX, Invitation
from crdt.roster_ops import Join as JoinOp
from crdt.roster_ops import Role, SetRole, pack_ops
from crdt.seal import SIGNATURE_SIZE, EpochKey, seal, seal_to
from crdt.slot import BlockRef, Content, Kind, Manifest, Placement, Profile, Slot
from crdt.version_vector import EMPTY, VersionVector
from node.blocks.codec import seal_block
from node.blocks.hashing import block_id
from node.blocks.manifest import build_manifest, parse_node
from node.files.memory import MemoryFileSystem
from node.files.root_marker import RootId, create_root_marker
from node.home import FolderConfig
from tests.people import Person, secret
from transport import messages as m
from transport import relay_messages as r
from transport.frames import (
    ADMISSION,
    BLOCKS,
    CONTROL,
    DEPOSITS,
    HOSTING,
    OPENERS,
    RECEIPTS,
    WANTS,
    encode,
)  # fmt: skip
from transport.identity import load_or_create

CORPUS: Final = Path(__file__).parent / "corpus"
STREAMS: Final = (CONTROL, WANTS, BLOCKS, ADMISSION, OPENERS, HOSTING, DEPOSITS, RECEIPTS)
NONCE: Final = bytes(24)
DATAGRAM_SIZE: Final = 1200  # what a first datagram has at least


@functools.cache
def team() -> tuple[Person, Person]:
    """An owner and an editor of one folder, with some history between them."""
    alice, bob, carol = Person("alice"), Person("bob"), Person("carol")
    alice.found()
    invitation = alice.invite("for bob")
    bob.enter(alice.folder)
    alice.admit(bob, invitation)
    alice.add(carol, Role.READER)
    bob.hear(alice)
    alice.write()
    bob.write()
    alice.hear(bob)
    bob.hear(alice)
    alice.remove(carol)
    bob.hear(alice)
    assert bob.roster.may_write(bob.device)
    return alice, bob


@functools.cache
def current_key() -> EpochKey:
    """The key under which both write now."""
    keys = team()[0].keys
    assert keys.current is not None
    return keys.epoch(keys.current)


def slots() -> list[Slot]:
    """Slots of every shape, all of which the editor may write next."""
    alice, bob = team()
    counter, lamport = bob.have[bob.device] + 1, bob.lamport + 1
    version = VersionVector({bob.device: counter, alice.device: 2})

    def content(**fields: object) -> Content:
        made: dict[str, object] = {
            "version": version,
            "device": bob.device,
            "lamport": lamport,
            "kind": Kind.FILE,
            "origin": (bob.device, counter),
        }
        return Content(**{**made, **fields})  # type: ignore[arg-type]

    refs = tuple(BlockRef(BlockId(secret("block", n)), 40_000) for n in range(3))
    parent = ItemId(secret("directory")[:16])
    return [
        Slot(counter, (Placement(lamport, ROOT, "ä.txt"),), content(inline=b"hello", size=5)),
        Slot(counter, (Placement(lamport, ROOT, "directory"),), content(kind=Kind.DIRECTORY)),
        Slot(
            counter,
            (Placement(lamport, parent, "b"), Placement(1, ROOT, "a")),
            content(
                size=120_000,
                mtime_ns=1_700_000_000_000_000_000,
                executable=True,
                manifest=Manifest(Profile.SMALL, 0, refs),
            ),
        ),
        Slot(counter, (Placement(lamport, ROOT, "l"),), content(kind=Kind.SYMLINK, target="ä.txt")),
        Slot(counter, (), None, version),
    ]


def body_plains() -> list[bytes]:
    """Opened bodies of tree entries: one old form, one with a time, all slots at once."""
    made = sorted((ItemId(secret("item", n)[:16]), slot) for n, slot in enumerate(slots()))
    wire = [[item, slot.to_wire()] for item, slot in made]
    return [pack(wire), pack({"time": 1_700_000_000_000, "writes": wire}), pack(wire[:1])]


def stored_bodies() -> list[bytes]:
    """The same as they lie in the seal."""
    squeezed = [zstandard.ZstdCompressor(level=3).compress(one) for one in body_plains()]
    return [b"\0" + body_plains()[0], *(b"\1" + one for one in squeezed)]


def rosters() -> list[bytes]:
    """Bodies of roster entries."""
    alice, bob = team()
    bodies = [one.body for one in alice.arrivals if one.header.kind is EntryKind.ROSTER]
    role = SetRole(bob.device, Role.READER, True, bob.have[bob.device], bytes(32))
    return [*bodies, pack_ops([role])]


def messages() -> list[m.Message]:
    """One of each."""
    alice, bob = team()
    folder = alice.folder
    blocks = (BlockId(secret("b1")), BlockId(secret("b2")))
    heads = {device: one.head for device, one in alice.positions.items()}
    place = r.Place(b"g" * 16, 7, b"m" * 16)
    entries = tuple(one.to_bytes() for one in alice.arrivals[-2:])
    signature = sign_deposit(bob.seed, folder, blocks[0], bytes(32))
    join = JoinOp.signed(folder, secret("invitation", "x"), secret("y"), "dora/phone")
    return [
        m.Hello(folder, "alice/laptop", "shoal 0.1"),
        m.Have(alice.have, alice.have, heads),
        m.Entries(entries),
        m.Ack(alice.have, EMPTY, heads, settled=2),
        m.Bye(1, "no member"),
        m.OpenBlocks(folder),
        m.Want(3, blocks),
        m.Block(3, blocks[0], b"sealed" * 10),
        m.Block(3, blocks[0], b"sealed", bytes(bob.device), signature),
        m.Missing(3, blocks),
        m.Locate(4, blocks),
        m.Located(4, ()),
        m.Join(folder, join),
        m.Admitted(entries, more=True),
        m.Refused(2, "used"),
        r.Here(0, blocks),
        r.Host(folder, "token"),
        r.Hosting("relay"),
        r.OpenDeposits(folder, place),
        r.Depot(place, continues=True),
        r.Offer(5, blocks),
        r.Lacking(5, (), "full"),
        r.Put(5, blocks[0], b"sealed", b"s" * SIGNATURE_SIZE),
        r.Stored(5, place),
        r.Drop(blocks, alice.have, b"s" * SIGNATURE_SIZE),
    ]


def stream_of(message: m.Message) -> int:
    """The number of a stream that may carry a message."""
    return next(n for n, kinds in enumerate(STREAMS) if type(message) in kinds)


def _in_order(
    refs: Sequence[BlockRef], depth: int, nodes: Mapping[BlockId, bytes]
) -> Iterator[bytes]:
    """The nodes beneath `refs`, as a walk asks for them."""
    for ref in refs if depth else ():
        yield nodes[ref.block]
        yield from _in_order(parse_node(nodes[ref.block]), depth - 1, nodes)


def manifests() -> list[bytes]:
    """[size, profile, depth, top references, nodes in the order in which a walk wants them]."""
    found = []
    for count in (3, 40, 300):
        refs = [BlockRef(BlockId(secret("data", n)), 40_000) for n in range(count)]
        top, nodes = build_manifest(team()[1].keys.block_id_key, Profile.SMALL, refs)
        order = list(_in_order(top.blocks, top.depth, nodes))
        wire = [[ref.block, ref.length] for ref in top.blocks]
        found.append(pack([40_000 * count, int(top.profile), top.depth, wire, order]))
    return found


def block_plain() -> bytes:
    """The block that all sealed blocks here claim to be."""
    return b"to be or not to be\n" * 50


def block_ref() -> BlockRef:
    """And its name."""
    return BlockRef(block_id(team()[1].keys.block_id_key, block_plain()), len(block_plain()))


def sealed_block() -> bytes:
    """The block as it travels."""
    return seal_block(current_key(), block_ref().block, block_plain(), nonce=NONCE)


def invitation() -> Invitation:
    """One with everything in it."""
    addresses = (("192.0.2.1", 4711), ("2001:db8::1", 4711), ("host.example", 1))
    return Invitation(
        team()[0].folder, secret("invitation"), team()[0].device, addresses, "Fotos ä"
    )


def invitation_content() -> bytes:
    """What is inside, without the checksum."""
    letters = invitation().text.removeprefix(PREFIX).upper()
    return base64.b32decode(letters + "=" * (-len(letters) % 8))[:-4]


def identity_file() -> bytes:
    """A device's key as it lies in the home."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "identity"
        load_or_create(str(path), lambda size: secret("identity")[:size])
        return path.read_bytes()


def marker_file() -> bytes:
    """`.shoal/root`."""
    fs = MemoryFileSystem()
    create_root_marker(fs, RootId(bytes(range(16))))
    return fs.read_file(".shoal/root")


def config_file() -> bytes:
    """A folder's configuration."""
    peers = (("192.0.2.1", 4711), ("host.example", 1))
    folder = team()[0].folder
    return FolderConfig(folder, "/alice/Shoal", bytes(16), secret("i"), peers).to_bytes()


def datagrams() -> list[bytes]:
    """First datagrams: an Initial, one with a token, other versions and types."""
    initial = b"\xc3\0\0\0\1\x08destined\x08source__\0\x44\x96" + bytes(1174)
    token = b"\xc3\0\0\0\1\x08destined\x08source__\x40\x80" + bytes(128) + b"\x44\x15"
    retry = encode_quic_retry(1, b"source__", b"destined", b"original", b"token" * 9)
    negotiation = b"\x80\0\0\0\0\x08destined\x08source__\0\0\0\1"
    other = b"\xc3\x0a\x0a\x0a\x0a" + initial[5:]
    short = b"\x43destined" + bytes(40)
    return [
        one.ljust(DATAGRAM_SIZE, b"\0")
        for one in (initial, token, retry, negotiation, other, short)
    ]


IGNORE_FILE: Final = """# what an editor leaves
*.tmp
/build/
!keep.tmp
docs/**/*.pdf
[a-z]?.o
\\#not a comment
**/node_modules/*/x
"""


def corpus() -> dict[str, list[bytes]]:
    """Target → valid inputs."""
    alice, bob = team()
    return {
        "frame": [bytes([stream_of(one)]) + encode(one) for one in messages()],
        "message": [bytes([stream_of(o), o.type]) + pack(o.to_wire()) for o in messages()],
        "entry": [one.to_bytes() for one in alice.arrivals],
        "header": [one.header.packed for one in bob.arrivals[-3:]],
        "body": body_plains(),
        "stored body": stored_bodies(),
        "slot": [pack(one.to_wire()) for one in slots()],
        "roster": rosters(),
        "roster file": [pack([one.to_bytes() for one in alice.arrivals[:3]])],
        "manifest": manifests(),
        "block": [sealed_block()],
        "stored block": [b"\0" + block_plain(), b"\1" + zstandard.compress(block_plain())],
        "seal": [seal(secret("key"), b"plain", nonce=NONCE, associated=b"here")],
        "box": [seal_to(bob.device, b"plain", seed=secret("box"), associated=b"here")],
        "invitation": [invitation().text.encode(), invitation().text.upper().encode()],
        "invitation content": [invitation_content()],
        "root marker": [marker_file()],
        "identity": [identity_file()],
        "configuration": [config_file()],
        "history settings": [b'{"all_s": 2592000, "daily_s": 31536000, "share": 0.2, "size": 9}'],
        "datagram": datagrams(),
        "ignore file": [IGNORE_FILE.encode(), b"*\n", b"**/a/**\n!b\r\n\xef\xbb\xbf[!a-]*x*y*z\n"],
    }


def write_corpus() -> None:
    """Write it to the repository."""
    for target, inputs in corpus().items():
        directory = CORPUS / target.replace(" ", "-")
        directory.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(inputs):
            (directory / f"{number:02}").write_bytes(data)
