"""Roles: who may change them, what follows, and that every order of arrival gives one outcome."""

from __future__ import annotations

import itertools

import pytest

from crdt.acceptance import Accept, Aside
from crdt.codec import pack
from crdt.entry import START, EntryKind
from crdt.errors import CallerError
from crdt.roster import InvitationState, Roster
from crdt.roster_make import set_role_ops
from crdt.roster_ops import Role, SetRole, pack_ops, parse_ops
from crdt.seal import device_of
from tests.people import Person, folder_of, meet, secret


@pytest.fixture
def owner() -> Person:
    return Person("owner")


@pytest.fixture
def people(owner: Person) -> dict[str, Person]:
    return folder_of(
        owner, second=Role.OWNER, editor=Role.EDITOR, reader=Role.READER, relay=Role.RELAY
    )


def change(by: Person, of: Person, role: Role, *, may_invite: bool = False) -> SetRole:
    ops = set_role_ops(
        by.roster,
        by.keys,
        of.device,
        role=role,
        may_invite=may_invite,
        position=by.positions.get(of.device, START),
        epoch_secret=by.draw(),
        seed=by.draw(),
        now_s=0,
    )
    by.do(*ops)
    (op,) = (op for op in ops if isinstance(op, SetRole))
    return op


def reasons(person: Person) -> set[str]:
    return {void.reason for void in person.roster.void}


def test_an_owner_changes_a_role(owner: Person, people: dict[str, Person]) -> None:
    editor, reader = people["editor"], people["reader"]
    change(owner, editor, Role.READER)
    change(owner, reader, Role.EDITOR)
    meet(owner, *people.values())
    for person in people.values():
        assert person.roster.role(editor.device) is Role.READER
        assert person.roster.role(reader.device) is Role.EDITOR
    assert isinstance(owner.receive(reader.write()), Accept)
    assert not owner.roster.may_write(editor.device)


def test_what_cannot_be_asked_for(owner: Person, people: dict[str, Person]) -> None:
    for of, role, words in (
        (owner, Role.OWNER, "has that role already"),
        (people["editor"], Role.RELAY, "a relay stays a relay"),
        (people["relay"], Role.READER, "a relay stays a relay"),
        (Person("stranger"), Role.READER, "is not a member"),
    ):
        with pytest.raises(CallerError, match=words):
            change(owner, of, role)
    owner.remove(people["second"])
    with pytest.raises(CallerError, match="last owner"):
        change(owner, owner, Role.READER)


@pytest.mark.parametrize("who", ["editor", "reader", "relay"])
def test_nobody_else_changes_roles(owner: Person, people: dict[str, Person], who: str) -> None:
    person = people[who]
    op = SetRole(person.device, Role.OWNER, True, person.have[person.device], bytes(32))
    person.do(op)
    other = people["second"]
    person.do(SetRole(other.device, Role.READER, False, person.have[other.device], bytes(32)))
    meet(owner, *people.values())
    assert owner.roster.role(other.device) is Role.OWNER
    assert owner.roster.role(person.device) is not Role.OWNER
    assert reasons(owner) == {"its issuer has no right to it"}


def test_nobody_changes_its_own_role(owner: Person, people: dict[str, Person]) -> None:
    owner.do(SetRole(owner.device, Role.READER, False, owner.have[owner.device], bytes(32)))
    assert owner.roster.role(owner.device) is Role.OWNER
    assert reasons(owner) == {"a device cannot change its own role"}


def test_a_change_says_what_its_issuer_had_seen(owner: Person, people: dict[str, Person]) -> None:
    owner.do(SetRole(people["editor"].device, Role.READER, False, 7, bytes(32)))
    assert owner.roster.role(people["editor"].device) is Role.EDITOR
    assert reasons(owner) == {"it does not end the device's log where its issuer had seen it"}


def test_what_was_written_before_counts_and_what_came_unseen_does_not(
    owner: Person, people: dict[str, Person]
) -> None:
    editor, second = people["editor"], people["second"]
    before = editor.write()
    owner.receive(before)
    change(owner, editor, Role.READER)
    unaware = editor.write()
    assert isinstance(second.receive(before), Accept)
    assert isinstance(second.receive(unaware), Accept)
    meet(owner, second)
    for person in (owner, second):
        assert person.roster.counts(editor.device, before.header.seq)
        assert not person.roster.counts(editor.device, unaware.header.seq)
    editor.hear(owner)
    assert isinstance(owner.judge(editor.tree_entry()), Aside), "it knew"


def test_a_role_that_is_given_back_counts_from_there(
    owner: Person, people: dict[str, Person]
) -> None:
    editor = people["editor"]
    change(owner, editor, Role.READER)
    lost = editor.write()
    owner.receive(lost)
    change(owner, editor, Role.EDITOR)
    editor.hear(owner)
    good = editor.write()
    assert isinstance(owner.receive(good), Accept)
    assert not owner.roster.counts(editor.device, lost.header.seq)
    assert owner.roster.counts(editor.device, good.header.seq)


def test_of_changes_at_once_the_narrower_counts(owner: Person, people: dict[str, Person]) -> None:
    second, reader, editor = people["second"], people["reader"], people["editor"]
    change(owner, reader, Role.OWNER, may_invite=True)
    change(second, reader, Role.EDITOR, may_invite=False)
    change(owner, editor, Role.OWNER)
    change(second, editor, Role.READER)
    meet(owner, second)
    for person in (owner, second):
        assert person.roster.role(reader.device) is Role.EDITOR
        assert not person.roster.members[reader.device].may_invite
        assert person.roster.role(editor.device) is Role.READER
    change(owner, reader, Role.OWNER)  # one that knew of both
    meet(owner, second)
    assert second.roster.role(reader.device) is Role.OWNER


def test_additions_and_joins_no_longer_change_a_role_that_was_set(
    owner: Person, people: dict[str, Person]
) -> None:
    editor = people["editor"]
    change(owner, editor, Role.READER)
    owner.add(editor, Role.OWNER)
    assert owner.roster.role(editor.device) is Role.READER


def test_owners_that_demote_each_other_leave_one(owner: Person, people: dict[str, Person]) -> None:
    second = people["second"]
    change(owner, second, Role.READER)
    change(second, owner, Role.READER)
    meet(owner, *people.values())
    outcomes = {
        tuple(p.roster.role(one.device) for one in (owner, second)) for p in (owner, second)
    }
    assert len(outcomes) == 1
    assert sorted(next(iter(outcomes)), key=int) == [Role.OWNER, Role.READER]  # type: ignore[arg-type]


def test_an_editor_invites_only_where_an_owner_allows_it(
    owner: Person, people: dict[str, Person]
) -> None:
    editor = people["editor"]
    editor.invite("not allowed", Role.READER)
    meet(owner, editor)
    assert owner.roster.invitations == {}
    change(owner, editor, Role.EDITOR, may_invite=True)
    meet(owner, editor)
    editor.invite("too wide", Role.OWNER)
    secret_half = editor.invite("allowed", Role.EDITOR)
    meet(owner, editor)
    (key,) = owner.roster.invitations
    assert key == device_of(secret_half)
    guest = Person("guest")
    owner.admit(guest, secret_half)
    assert owner.roster.role(guest.device) is Role.EDITOR
    meet(owner, editor)
    second_half = editor.invite("another", Role.EDITOR)
    meet(owner, editor)
    editor.revoke(second_half)
    meet(owner, editor)
    state = owner.roster.invitation_state(device_of(second_half), 0)
    assert state is InvitationState.CLOSED, "who issued it may revoke it"


def test_a_narrower_role_closes_the_invitations_that_the_device_knows(
    owner: Person, people: dict[str, Person]
) -> None:
    second = people["second"]
    half = second.invite("owners", Role.OWNER, uses=5)
    meet(owner, second)
    change(owner, second, Role.EDITOR)
    state = owner.roster.invitation_state(device_of(half), 0)
    assert state is InvitationState.CLOSED
    assert owner.roster.epoch is not None, "and a new epoch came with it"
    assert owner.keys.current == owner.roster.epoch
    guest = Person("guest")
    owner.admit(guest, half)
    assert owner.roster.role(guest.device) is None


def test_permission_that_is_taken_away_at_the_same_time(
    owner: Person, people: dict[str, Person]
) -> None:
    editor, second = people["editor"], people["second"]
    change(owner, editor, Role.EDITOR, may_invite=True)
    meet(owner, *people.values())
    change(owner, editor, Role.EDITOR, may_invite=False)
    half = editor.invite("at the same time", Role.EDITOR)
    second.hear(editor)
    guest = Person("guest")
    second.admit(guest, half)
    meet(owner, second, editor)
    assert owner.roster.role(guest.device) is None
    assert owner.roster.named_role(guest.device) is Role.EDITOR, "so that all logs stay equal"


def test_the_set_of_entries_decides_and_no_order(owner: Person, people: dict[str, Person]) -> None:
    second, editor = people["second"], people["editor"]
    change(owner, editor, Role.READER)
    change(second, editor, Role.OWNER, may_invite=True)
    owner.remove(people["reader"])
    change(second, people["reader"], Role.EDITOR)
    meet(owner, second)
    change(owner, editor, Role.EDITOR)
    entries = [e for e in owner.arrivals if e.header.kind is EntryKind.ROSTER]
    fixed, moving = entries[:-5], entries[-5:]
    folds = {
        repr(Roster.fold(owner.folder, [*order, *fixed]))
        for order in itertools.permutations(moving)
    }
    assert len(folds) == 1


def test_the_wire_form_is_strict() -> None:
    op = SetRole(device_of(secret("d")), Role.READER, True, 5, bytes(32))
    assert parse_ops(pack_ops([op])) == (op,)
    wire = op.to_wire()
    for position, bad in (
        (1, b"short"),
        (2, 4),  # no member becomes a relay
        (2, 0),
        (3, 1),
        (4, -1),
        (4, 2**53 + 1),
        (5, b"short"),
    ):
        with pytest.raises(ValueError, match=r"."):
            parse_ops(pack([[*wire[:position], bad, *wire[position + 1 :]]]))
    with pytest.raises(ValueError, match="malformed"):
        parse_ops(pack([[*wire, 1]]))
