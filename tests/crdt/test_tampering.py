"""Every signed or sealed object: each byte changed, and each moved to where it does not belong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crdt.acceptance import Accept, Verdict
from crdt.codec import pack
from crdt.entry import Entry, EntryKind, open_body
from crdt.errors import CallerError, IntegrityError
from crdt.ids import FolderId
from crdt.invitation import Invitation
from crdt.roster import box_binding, previous_binding
from crdt.roster_make import join_op
from crdt.roster_ops import Epoch, Join, Role, parse_ops
from crdt.seal import device_of, open_box, open_sealed
from tests.people import Person, folder_of, meet, secret

OTHER = FolderId(secret("another folder"))


def flips(data: bytes) -> list[bytes]:
    return [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(len(data))]


@pytest.fixture
def owner() -> Person:
    return Person("owner")


@pytest.fixture
def people(owner: Person) -> dict[str, Person]:
    return folder_of(owner, editor=Role.EDITOR, second=Role.EDITOR)


def accepted(person: Person, data: bytes) -> bool:
    """Whether a receiver takes this into its log."""
    try:
        verdict: Verdict = person.judge(Entry.from_bytes(data))
    except ValueError:
        return False
    return isinstance(verdict, Accept)


@pytest.mark.parametrize("kind", list(EntryKind))
def test_an_entry_with_any_byte_changed(
    owner: Person, people: dict[str, Person], kind: EntryKind
) -> None:
    editor = people["editor"]
    entry = editor.tree_entry() if kind is EntryKind.TREE else editor.begin_epoch()
    if kind is EntryKind.ROSTER:
        owner = people["second"]
    data = entry.to_bytes()
    assert accepted(owner, data)
    assert not any(accepted(owner, bad) for bad in flips(data))


def test_an_entry_in_another_folder_epoch_or_position(
    owner: Person, people: dict[str, Person]
) -> None:
    editor = people["editor"]
    entry = editor.tree_entry()
    header = entry.header

    def moved(**changes: object) -> bytes:
        return Entry(replace(header, **changes), entry.signature, entry.body).to_bytes()  # type: ignore[arg-type]

    assert accepted(owner, entry.to_bytes())
    for bad in (
        moved(folder=OTHER),
        moved(epoch=header.epoch + 1),
        moved(device=people["second"].device),
        moved(lamport=header.lamport + 1),
        moved(seq=2, prev_hash=bytes([1]) * 32, deps=header.deps.with_counter(header.device, 1)),
        pack([header.packed, entry.signature, people["second"].tree_entry().body]),
    ):
        assert not accepted(owner, bad)


def test_a_body_that_its_author_signs_at_another_place(
    owner: Person, people: dict[str, Person]
) -> None:
    # A member may sign what it likes: but nobody's sealed writes open at another place.
    editor, second = people["editor"], people["second"]
    keys = owner.keys
    assert keys.current is not None
    key = keys.epoch(keys.current)
    theirs = second.tree_entry()
    stolen = editor.sign(theirs.body, EntryKind.TREE, epoch=key.number)
    assert isinstance(owner.receive(stolen), Accept), "the log takes it: it is signed"
    with pytest.raises(IntegrityError):
        open_body(stolen, key)
    editor.entries.clear()
    again = editor.sign(editor.tree_entry().body, EntryKind.TREE, epoch=key.number, lamport=99)
    assert open_body(again, key).writes, "its own, at the very place that it was sealed for"
    deps = again.header.deps.with_counter(editor.device, 4)
    later = replace(again.header, seq=5, prev_hash=b"\1" * 32, deps=deps)
    with pytest.raises(IntegrityError):
        open_body(Entry(later, again.signature, again.body), key)


def test_the_keys_of_epochs_do_not_move(owner: Person, people: dict[str, Person]) -> None:
    first = owner.arrivals[0]
    (epoch,) = (op for op in parse_ops(first.body) if isinstance(op, Epoch))
    ((recipient, box),) = epoch.sealed
    number = owner.roster.first_epoch
    binding = box_binding(owner.folder, number)
    assert recipient == owner.device
    assert len(open_box(owner.seed, box, associated=binding)) == 32
    for wrong in (box_binding(OTHER, number), box_binding(owner.folder, number + 1), b""):
        with pytest.raises(IntegrityError):
            open_box(owner.seed, box, associated=wrong)
    with pytest.raises(IntegrityError):
        open_box(people["editor"].seed, box, associated=binding)
    for bad in flips(box):
        with pytest.raises(IntegrityError):
            open_box(owner.seed, bad, associated=binding)


def test_the_way_back_to_earlier_epochs_does_not_move(
    owner: Person, people: dict[str, Person]
) -> None:
    before = owner.roster.first_epoch
    (op,) = parse_ops(owner.begin_epoch().body)
    assert isinstance(op, Epoch)
    ((previous, sealed),) = op.previous
    assert previous == before
    assert owner.keys.current is not None
    now = owner.keys.epoch(owner.keys.current)
    binding = previous_binding(owner.folder, now.number, before)
    secret_before = open_sealed(now.previous_key, sealed, associated=binding)
    assert secret_before == owner.keys.epoch(before).secret
    for wrong in (
        previous_binding(OTHER, now.number, before),
        previous_binding(owner.folder, before, now.number),
        previous_binding(owner.folder, now.number, before + 1),
    ):
        with pytest.raises(IntegrityError):
            open_sealed(now.previous_key, sealed, associated=wrong)
    for key in (now.entry_key, now.block_key, owner.keys.epoch(before).previous_key):
        with pytest.raises(IntegrityError):
            open_sealed(key, sealed, associated=binding)
    for bad in flips(sealed):
        with pytest.raises(IntegrityError):
            open_sealed(now.previous_key, bad, associated=binding)


def test_a_join_with_any_byte_changed_or_for_another_folder(owner: Person) -> None:
    owner.found()
    invitation = owner.invite("for the guest")
    guest = Person("guest")
    op = join_op(owner.folder, invitation, guest.seed, "guest")
    assert op.verify(owner.folder)
    assert not op.verify(OTHER)
    wire = op.to_wire()
    for at in range(1, len(wire)):
        field = wire[at] if isinstance(wire[at], bytes) else wire[at].encode()
        for bad in flips(field):
            changed: object = bad if isinstance(wire[at], bytes) else bad.decode(errors="replace")
            try:
                (other,) = parse_ops(pack([[*wire[:at], changed, *wire[at + 1 :]]]))
            except ValueError:
                continue
            assert isinstance(other, Join)
            assert not other.verify(owner.folder)


def test_somebody_elses_key_does_not_join(owner: Person) -> None:
    owner.found()
    invitation = owner.invite("for the guest")
    guest, thief = Person("guest"), Person("thief")
    op = join_op(owner.folder, invitation, guest.seed, "guest")
    stolen = Join(op.key, thief.device, "guest", op.invitation_signature, op.device_signature)
    assert not stolen.verify(owner.folder)
    owner.do(stolen)
    assert owner.roster.role(thief.device) is None
    meet(owner, Person("nobody", owner.folder))


def test_an_invitation_with_any_letter_changed() -> None:
    text = Invitation(OTHER, secret("s"), device_of(secret("d")), (("host", 7),), "name").text
    for at in range(len(text)):
        letter = "a" if text[at] != "a" else "b"
        with pytest.raises(CallerError):
            Invitation.from_text(text[:at] + letter + text[at + 1 :])
