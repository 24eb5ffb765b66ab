from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt.acceptance import Accept, Wait, WaitingRoom
from crdt.codec import pack, unpack
from crdt.entry import START, Entry, EntryKind
from crdt.errors import CallerError, PeerError
from crdt.ids import DeviceId, FolderId
from crdt.roster import InvitationState, Roster, box_binding
from crdt.roster_make import (
    genesis_ops,
    invite_op,
    join_op,
    removal_ops,
    revocation_ops,
    share_ops,
)
from crdt.roster_ops import (
    Add,
    Epoch,
    Genesis,
    Invite,
    Join,
    Op,
    Remove,
    Revoke,
    Role,
    Share,
    pack_ops,
    parse_ops,
)
from crdt.roster_state import Void
from crdt.seal import EpochKey, device_of, seal_to
from tests.people import Person, folder_of, meet, secret


@pytest.fixture
def owner() -> Person:
    return Person("owner")


@pytest.fixture
def people(owner: Person) -> dict[str, Person]:
    return folder_of(
        owner,
        owner2=Role.OWNER,
        owner3=Role.OWNER,
        editor=Role.EDITOR,
        reader=Role.READER,
        relay=Role.RELAY,
    )


def roster_entries(person: Person) -> list[Entry]:
    return [entry for entry in person.arrivals if entry.header.kind is EntryKind.ROSTER]


def reasons(roster: Roster) -> list[str]:
    return [void.reason for void in roster.void]


def members(person: Person) -> set[DeviceId]:
    return set(person.roster.members)


# --- operations on the wire


def one_of_each() -> list[Op]:
    seed, folder = secret("x"), FolderId(bytes(32))
    device = device_of(seed)
    _, (genesis, epoch) = genesis_ops(
        device, "x", nonce=bytes(32), epoch_secret=secret("e"), seed=secret("s")
    )
    return [
        genesis,
        epoch,
        Add(device, Role.READER, "alice/laptop"),
        Remove(device, 5, bytes(32)),
        Share(9, ((device, bytes(81)),)),
        Invite(device, Role.EDITOR, 3, 1_700_000_000, ((9, bytes(81)),)),
        Revoke(device),
        join_op(folder, secret("invitation"), seed, "x"),
    ]


def test_every_operation_survives_the_wire() -> None:
    ops = one_of_each()
    assert parse_ops(pack_ops(ops)) == tuple(ops)
    assert {type(op) for op in ops} == {
        Genesis, Add, Remove, Epoch, Share, Invite, Revoke, Join,
    }  # fmt: skip


@pytest.mark.parametrize("index", range(8))
def test_an_operation_with_a_foreign_field_is_refused_or_another(index: int) -> None:
    op = one_of_each()[index]
    wire = unpack(pack(op.to_wire()), size_max=10_000)
    junk: list[object] = [None, -1, 0, True, 2**53 + 1, "", "\n", b"", [], [[]], [[1, b""]], {}]
    for field, value in itertools.product(range(len(wire)), junk):
        bad = [*wire[:field], value, *wire[field + 1 :]]
        body = pack([bad])
        try:
            parsed = parse_ops(body)
        except ValueError:
            continue
        assert (parsed == (op,)) == (value == wire[field])
        assert pack([one.to_wire() for one in parsed]) == body
    for bad in (wire[:-1], [*wire, 0], []):
        with pytest.raises(ValueError, match=r"\w"):
            parse_ops(pack([bad]))


@pytest.mark.parametrize(
    "body", [b"", b"\xc0", pack([]), pack([[99]]), pack([1]), pack([[7, bytes(32)]] * 65)]
)
def test_other_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_ops(body)


@pytest.mark.parametrize("name", ["", " a", "a\n", "a\x1b[2J", "\u202egnp", "x" * 129, "\ud800"])
def test_a_device_has_a_printable_name(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Add(device_of(secret("x")), Role.EDITOR, name)
    with pytest.raises(CallerError, match="name"):
        join_op(FolderId(bytes(32)), secret("i"), secret("x"), name)


# --- genesis and roles


def test_genesis_makes_the_owner_and_the_first_epoch(owner: Person) -> None:
    owner.found()
    roster = owner.roster
    assert roster.role(owner.device) is Role.OWNER
    assert roster.members[owner.device].name == "owner"
    assert roster.epoch == roster.first_epoch == owner.keys.current == owner.keys.first
    assert not roster.void
    assert len(owner.keys.block_id_key) == 32


def test_a_folder_is_its_genesis(owner: Person) -> None:
    owner.found()
    other = Person("owner")
    other.draw()
    other.found()
    assert owner.folder != other.folder
    with pytest.raises(ValueError, match="this folder"):
        Roster.fold(other.folder, owner.arrivals)


@pytest.mark.parametrize(
    ("who", "may"),
    [
        ("owner2", {"add", "epoch", "invite"}),
        ("editor", {"epoch"}),
        ("reader", set()),
        ("relay", set()),
    ],
)
def test_each_role_has_its_rights(
    owner: Person, people: dict[str, Person], who: str, may: set[str]
) -> None:
    person = people[who]
    victim = people["owner3"]
    new = device_of(secret("new"))
    epoch = one_of_each()[1]
    ops: dict[str, Op] = {
        "add": Add(new, Role.OWNER, "new"),
        "remove": Remove(victim.device, 0, bytes(32)),
        "epoch": epoch,
        "invite": Invite(new, Role.EDITOR, 1, 0, ()),
        "revoke": Revoke(new),
        "genesis": Genesis(person.device, "x", bytes(32)),
    }
    person.do(*ops.values())
    done = {name for name, op in ops.items() if op not in [void.op for void in person.roster.void]}
    assert done == may | ({"remove", "revoke"} if may >= {"add"} else set())
    owner.hear(person)
    assert owner.roster == person.roster


def test_a_stranger_has_no_rights(owner: Person, people: dict[str, Person]) -> None:
    stranger = Person("stranger")
    stranger.enter(owner.folder)
    stranger.hear(owner)
    stranger.do(Add(stranger.device, Role.OWNER, "me"), *one_of_each()[1:7])
    assert len(stranger.roster.void) == 7
    assert stranger.roster.named_role(stranger.device) is None


def test_a_role_can_be_raised_and_is_never_lowered(
    owner: Person, people: dict[str, Person]
) -> None:
    reader = people["reader"]
    owner.do(Add(reader.device, Role.EDITOR, "new name"))
    assert owner.roster.may_write(reader.device)
    assert owner.roster.members[reader.device].name == "new name"
    owner.do(Add(reader.device, Role.READER, "new name"))
    assert owner.roster.may_write(reader.device)


def test_a_device_whose_key_is_none_is_not_added(owner: Person) -> None:
    owner.found()
    owner.do(Add(DeviceId(bytes(32)), Role.EDITOR, "junk"))
    assert reasons(owner.roster) == ["the device's key is not valid"]


def test_an_entry_whose_lamport_goes_back_is_void(owner: Person, people: dict[str, Person]) -> None:
    second = people["owner2"]
    owner.do(Add(device_of(secret("a")), Role.EDITOR, "a"))
    second.hear(owner)
    second.do(Add(device_of(secret("b")), Role.EDITOR, "b"), lamport=owner.lamport)
    assert reasons(second.roster) == ["its lamport is not after what it had seen"]


# --- invitations


def test_a_join_makes_a_member_that_reads_everything(
    owner: Person, people: dict[str, Person]
) -> None:
    invitation = owner.invite("one")
    new = Person("new")
    people["relay"].hear(owner)
    people["relay"].admit(new, invitation)  # while the owner sleeps
    new.hear(people["relay"])
    member = new.roster.members[new.device]
    assert (member.role, member.name, member.invitation) == (
        Role.EDITOR,
        "new",
        device_of(invitation),
    )
    assert new.keys.epochs.keys() == owner.keys.epochs.keys()
    assert new.roster.lacking(new.device) == {owner.roster.first_epoch}
    new.share(new)
    assert not new.roster.lacking(new.device)
    new.seeds = [new.seed]  # the invitation's secret is needed no more
    assert new.keys.block_id_key == owner.keys.block_id_key
    owner.hear(people["relay"], new)
    assert owner.roster == new.roster
    assert not owner.roster.void


def test_a_relay_gets_no_keys(owner: Person, people: dict[str, Person]) -> None:
    invitation = owner.invite("relay", role=Role.RELAY)
    new = Person("new relay")
    owner.admit(new, invitation)
    new.hear(owner)
    assert new.keys.epochs == {}
    assert new.keys.current is None
    assert share_ops(owner.roster, owner.keys, [new.device], seed=secret("s")) == ()


def test_an_invitation_works_once(owner: Person, people: dict[str, Person]) -> None:
    invitation = owner.invite("one")
    key = device_of(invitation)
    assert owner.roster.invitation_state(key, 0) is InvitationState.OPEN
    owner.admit(Person("first"), invitation)
    assert owner.roster.invitation_state(key, 0) is InvitationState.USED
    owner.admit(Person("second"), invitation)
    assert Person("second").device not in owner.roster.members
    assert reasons(owner.roster) == ["the invitation is used up"]
    owner.admit(Person("first"), invitation)  # said twice, does no harm
    assert len(owner.roster.void) == 1


def test_an_invitation_for_two_works_twice(owner: Person, people: dict[str, Person]) -> None:
    invitation = owner.invite("two", uses=2)
    for name in ("first", "second", "third"):
        owner.admit(Person(name), invitation)
    assert {Person("first").device, Person("second").device} < members(owner)
    assert Person("third").device not in members(owner)


def test_two_admitters_who_do_not_know_of_each_other_both_admit(
    owner: Person, people: dict[str, Person]
) -> None:
    invitation = owner.invite("one")
    relay, editor = people["relay"], people["editor"]
    relay.hear(owner)
    editor.hear(owner)
    relay.admit(Person("first"), invitation)
    editor.admit(Person("second"), invitation)
    meet(owner, relay, editor)
    assert {Person("first").device, Person("second").device} < members(owner)
    assert owner.roster == relay.roster == editor.roster
    editor.admit(Person("third"), invitation)
    assert Person("third").device not in members(editor)


def test_a_revoked_invitation_admits_nobody_and_reads_nothing_new(
    owner: Person, people: dict[str, Person]
) -> None:
    invitation = owner.invite("one")
    old = owner.roster.epoch
    owner.revoke(invitation)
    assert owner.roster.invitation_state(device_of(invitation), 0) is InvitationState.CLOSED
    owner.admit(Person("late"), invitation)
    assert reasons(owner.roster) == ["the invitation is revoked"]
    assert owner.roster.epoch not in {old, None}
    assert owner.roster.epoch not in owner.roster.open_epochs(invitation)
    assert owner.roster.open_epochs(invitation)
    with pytest.raises(CallerError, match="no such open invitation"):
        owner.revoke(invitation)


def test_a_join_that_did_not_know_of_the_revocation_stands(
    owner: Person, people: dict[str, Person]
) -> None:
    invitation, new = owner.invite("one"), Person("new")
    people["relay"].hear(owner)
    people["relay"].admit(new, invitation)
    owner.revoke(invitation)
    meet(owner, people["relay"])
    assert new.device in members(owner)
    assert new.device in members(people["relay"])
    new.hear(owner)
    # It does not read what the owner began without it, until somebody shares it.
    assert new.keys.current is None
    assert owner.roster.lacking(new.device)
    owner.share(new)
    new.hear(owner)
    assert new.keys.current == owner.keys.current is not None


def test_expiry_is_judged_by_whoever_admits(owner: Person, people: dict[str, Person]) -> None:
    invitation, new = owner.invite("one", expires_s=1000), Person("new")
    join = join_op(owner.folder, invitation, new.seed, "new")
    owner.roster.check_join(join, 1000)
    assert owner.roster.invitation_state(join.key, 1001) is InvitationState.EXPIRED
    with pytest.raises(PeerError, match="expired"):
        owner.roster.check_join(join, 1001)
    owner.do(join)
    owner.roster.check_join(join, 2000)  # said again by one that was admitted in time
    with pytest.raises(PeerError, match="used up"):
        owner.roster.check_join(join_op(owner.folder, invitation, secret("2"), "2"), 0)
    with pytest.raises(PeerError, match="unknown"):
        owner.roster.check_join(join_op(owner.folder, secret("none"), new.seed, "new"), 0)
    owner.remove(new)
    with pytest.raises(PeerError, match="new identity"):
        owner.roster.check_join(join, 0)


def test_a_join_with_any_byte_changed_does_not_hold(owner: Person) -> None:
    owner.found()
    invitation = owner.invite("one")
    join = join_op(owner.folder, invitation, secret("new"), "new")
    body = pack_ops([join])
    assert join.verify(owner.folder)
    assert not join.verify(FolderId(bytes(32)))
    for i in range(len(body)):
        try:
            (op,) = parse_ops(body[:i] + bytes([body[i] ^ 1]) + body[i + 1 :])
        except ValueError:
            continue
        assert not isinstance(op, Join) or not op.verify(owner.folder)
    forged = Join(join.key, device_of(secret("thief")), "new", join.invitation_signature, bytes(64))
    owner.do(forged)
    assert reasons(owner.roster) == ["its signatures do not hold"]
    with pytest.raises(PeerError, match="signatures"):
        owner.roster.check_join(forged, 0)


def test_nobody_joins_with_somebody_elses_key(owner: Person, people: dict[str, Person]) -> None:
    invitation = owner.invite("one", role=Role.OWNER)
    thief = join_op(owner.folder, invitation, secret("thief"), "x")
    editor = people["editor"].device
    owner.do(Join(thief.key, editor, "x", thief.invitation_signature, thief.device_signature))
    assert owner.roster.role(editor) is Role.EDITOR


def test_wrong_invitations_and_removals_are_the_callers_error(
    owner: Person, people: dict[str, Person]
) -> None:
    invitation = owner.invite("one")
    common = {"epoch_secret": secret("e"), "seed": secret("s"), "now_s": 0.0}
    roster, keys = owner.roster, owner.keys
    key = device_of(invitation)
    with pytest.raises(CallerError, match="exists already"):
        invite_op(roster, keys, key, role=Role.EDITOR, uses=1, expires_s=0, seed=secret("s"))
    with pytest.raises(CallerError, match="uses"):
        invite_op(
            roster, keys, owner.device, role=Role.EDITOR, uses=0, expires_s=0, seed=secret("s")
        )
    with pytest.raises(CallerError, match="no such open"):
        revocation_ops(roster, keys, owner.device, **common)  # type: ignore[arg-type]
    with pytest.raises(CallerError, match="not a member"):
        removal_ops(roster, keys, key, position=owner.positions[owner.device], **common)  # type: ignore[arg-type]
    alone = Person("alone")
    alone.found()
    with pytest.raises(CallerError, match="last owner"):
        removal_ops(
            alone.roster,
            alone.keys,
            alone.device,
            position=alone.positions[alone.device],
            **common,  # type: ignore[arg-type]
        )


# --- removals and epochs


def test_a_removal_begins_an_epoch_that_the_removed_cannot_read(
    owner: Person, people: dict[str, Person]
) -> None:
    editor = people["editor"]
    owner.hear(editor)
    before = owner.roster.epoch
    owner.remove(editor)
    roster = owner.roster
    assert roster.role(editor.device) is None
    assert roster.removed[editor.device].name == "editor"
    assert roster.epoch not in {before, None}
    assert set(roster.open_epochs(editor.seed)) == {before}
    for who in ("owner2", "reader"):
        people[who].hear(owner)
        assert people[who].keys.current == roster.epoch
        assert people[who].keys.epochs == owner.keys.epochs
    assert people["relay"].keys.epochs == {}


def test_removal_is_for_good(owner: Person, people: dict[str, Person]) -> None:
    editor = people["editor"]
    owner.remove(editor)
    owner.do(Add(editor.device, Role.EDITOR, "editor"))
    assert reasons(owner.roster) == ["the device was removed, which is for good"]
    assert owner.roster.role(editor.device) is None


@pytest.mark.parametrize("first", ["add", "remove"])
def test_removal_beats_a_concurrent_add(
    owner: Person, people: dict[str, Person], first: str
) -> None:
    second, editor = people["owner2"], people["editor"]
    low, high = owner.lamport + 1, owner.lamport + 5
    add = Add(editor.device, Role.OWNER, "editor")
    second.do(add, lamport=low if first == "add" else high)
    owner.remove(editor, lamport=high if first == "add" else low)
    meet(owner, second)
    assert owner.roster == second.roster
    assert owner.roster.role(editor.device) is None
    assert editor.device in owner.roster.removed


def test_of_two_owners_that_remove_each_other_one_stays(
    owner: Person, people: dict[str, Person]
) -> None:
    second, editor = people["owner2"], people["editor"]
    low, high = owner.lamport + 1, owner.lamport + 5
    owner.remove(second, lamport=high)
    second.remove(owner, lamport=low)
    editor.hear(owner, second)
    meet(owner, second, people["reader"], editor)
    for person in (owner, second, editor, people["reader"]):
        assert person.roster == owner.roster
    assert owner.roster.role(second.device) is Role.OWNER
    assert owner.roster.role(owner.device) is None
    assert reasons(owner.roster) == [
        "its issuer had lost the right to it",
        "its issuer had lost the right to it; it is only good for reading",
    ]
    # What either began is readable for all that are left; new writes exclude the removed one.
    current = second.keys.current
    assert current is not None
    assert current not in owner.roster.open_epochs(owner.seed)
    assert set(people["reader"].keys.epochs) == set(owner.roster.epochs)


def test_three_owners_in_a_ring_leave_one_at_least(
    owner: Person, people: dict[str, Person]
) -> None:
    ring = [owner, people["owner2"], people["owner3"]]
    for person, victim in zip(ring, [*ring[1:], ring[0]], strict=True):
        person.remove(victim)
    meet(*ring, people["editor"])
    assert ring[0].roster == ring[1].roster == ring[2].roster == people["editor"].roster
    owners = [m for m in owner.roster.members.values() if m.role is Role.OWNER]
    assert 1 <= len(owners) < 3


def test_concurrent_removals_leave_no_fit_epoch_until_a_member_begins_one(
    owner: Person, people: dict[str, Person]
) -> None:
    second, editor, reader = people["owner2"], people["editor"], people["reader"]
    owner.remove(people["owner3"])
    second.remove(reader)
    meet(owner, second, editor)
    assert not editor.roster.fit_epochs
    assert editor.keys.current is None
    assert len(editor.keys.epochs) == 3  # all readable
    editor.begin_epoch()
    meet(owner, second, editor)
    for person in (owner, second, editor):
        assert person.keys.current == editor.roster.epoch is not None
        assert len(person.keys.epochs) == 4
    for gone in (people["owner3"], reader):
        assert editor.roster.epoch not in editor.roster.open_epochs(gone.seed)


def test_two_removals_of_one_device_keep_what_either_remover_had_seen(
    owner: Person, people: dict[str, Person]
) -> None:
    second, editor = people["owner2"], people["editor"]
    first = editor.write()
    owner.receive(first)
    second.receive(first)
    second.receive(editor.write())
    owner.remove(editor)
    second.remove(editor)
    meet(owner, second)
    assert owner.roster == second.roster
    assert owner.roster.counts(editor.device, 2)
    assert not owner.roster.counts(editor.device, 3)


def test_a_removal_that_lies_about_what_it_saw_is_void(
    owner: Person, people: dict[str, Person]
) -> None:
    owner.do(Remove(people["editor"].device, 7, bytes(32)), Remove(owner.device, 1, bytes(32)))
    assert not owner.roster.removed
    assert len(owner.roster.void) == 2


def test_a_removal_closes_the_invitations_whose_secret_the_removed_knows(
    owner: Person, people: dict[str, Person]
) -> None:
    second = people["owner2"]
    issued = second.invite("issued by the removed")
    owner.hear(second)
    shared = owner.invite("came by it", uses=5)
    owner.admit(Person("new"), shared)
    owner.remove(second)
    owner.remove(Person("new"))
    for invitation in (issued, shared):
        state = owner.roster.invitation_state(device_of(invitation), 0)
        assert state is InvitationState.CLOSED
        assert owner.roster.epoch not in owner.roster.open_epochs(invitation)
    owner.admit(Person("friend"), issued)
    assert Person("friend").device not in members(owner)


def test_an_open_invitation_reads_the_epochs_that_begin_while_it_is_open(
    owner: Person, people: dict[str, Person]
) -> None:
    invitation = owner.invite("open", expires_s=1000)
    owner.remove(people["editor"])
    new = Person("new")
    people["relay"].hear(owner)
    people["relay"].admit(new, invitation)
    new.hear(people["relay"])
    assert new.keys.current == owner.keys.current is not None
    assert new.keys.epochs == owner.keys.epochs


def test_an_expired_invitation_gets_no_new_key(owner: Person, people: dict[str, Person]) -> None:
    invitation = owner.invite("old", expires_s=5)
    ops = removal_ops(
        owner.roster,
        owner.keys,
        people["editor"].device,
        position=owner.positions.get(people["editor"].device) or START,
        epoch_secret=secret("e"),
        seed=secret("s"),
        now_s=6,
    )
    epoch = ops[1]
    assert isinstance(epoch, Epoch)
    assert device_of(invitation) not in dict(epoch.sealed)


def test_an_epoch_given_to_an_outsider_is_not_fit(owner: Person, people: dict[str, Person]) -> None:
    relay, before = people["relay"], owner.roster.epoch
    key = owner.keys.epochs[owner.roster.first_epoch]
    leak = Share(key.number, ((relay.device, bytes(81)),))
    people["editor"].do(leak)
    owner.hear(people["editor"])
    assert before is not None
    assert owner.roster.epoch is None


def test_keys_moved_between_epochs_and_folders_do_not_open(owner: Person) -> None:
    owner.found()
    reader = Person("reader")
    owner.add(reader, Role.READER)
    owner.begin_epoch()
    first, second = owner.roster.epochs.values()
    box = second.boxes[reader.device][0]
    thief = Person("thief")
    owner.add(thief, Role.READER)
    for moved in (
        Share(first.number, ((thief.device, box),)),
        Share(second.number, ((thief.device, first.boxes[reader.device][0]),)),
    ):
        before = set(owner.roster.open_epochs(thief.seed))
        owner.do(moved)
        assert set(owner.roster.open_epochs(thief.seed)) == before


@pytest.mark.parametrize("where", ["sealed", "previous"])
def test_an_epoch_with_any_sealed_byte_changed_does_not_open_there(
    owner: Person, where: str
) -> None:
    owner.found()
    entry = owner.begin_epoch()
    (op,) = parse_ops(entry.body)
    assert isinstance(op, Epoch)
    number = owner.roster.epoch
    first = owner.roster.first_epoch

    def changed(i: int) -> Epoch:
        def flip(pair: tuple[object, bytes]) -> tuple[object, bytes]:
            key, data = pair
            return key, data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]

        flipped: Callable[[tuple[object, bytes]], tuple[object, bytes]] = flip
        parts = {"sealed": op.sealed, "previous": op.previous}
        parts[where] = tuple(flipped(pair) for pair in parts[where])
        return Epoch(op.commitment, **parts)  # type: ignore[arg-type]

    reader = Person("owner")  # knows the second epoch only by the changed operation
    for i in range(81 if where == "sealed" else 73):
        reader.arrivals, reader.entries = owner.arrivals[:1], {}
        reader.enter(owner.folder)
        reader.do(changed(i))
        opened = reader.roster.open_epochs(reader.seed)
        assert (number in opened) == (where == "previous")
        assert first in opened  # by its own box


def test_a_secret_that_its_epoch_does_not_commit_to_is_passed_over(owner: Person) -> None:
    owner.found()
    right, wrong = EpochKey(owner.folder, secret("1")), EpochKey(owner.folder, secret("2"))
    (op,) = parse_ops(pack_ops([one_of_each()[1]]))
    assert isinstance(op, Epoch)
    box = seal_to(
        owner.device,
        wrong.secret,
        seed=secret("s"),
        associated=box_binding(owner.folder, right.number),
    )
    owner.do(Epoch(right.commitment, ((owner.device, box),), ()))
    assert right.number in owner.roster.epochs
    assert right.number not in owner.keys.epochs


def test_an_epoch_is_begun_once(owner: Person) -> None:
    owner.found()
    entry = owner.begin_epoch()
    owner.do(*parse_ops(entry.body))
    assert reasons(owner.roster) == ["the epoch exists already"]


# --- the fold as a function of a set


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["remove", "add", "invite", "join", "hear", "epoch", "revoke", "write"]),
        st.integers(0, 7),
        st.integers(0, 7),
    ),
    max_size=25,
)


def play(steps: list[tuple[str, int, int]]) -> tuple[Person, list[Person]]:
    """A history in which every device does what its own roster lets it."""
    founder = Person("founder")
    by_name = folder_of(
        founder, b=Role.OWNER, c=Role.OWNER, d=Role.EDITOR, e=Role.READER, f=Role.RELAY
    )
    everybody = [founder, *by_name.values()]
    invitations: list[bytes] = []
    for number, (what, a, b) in enumerate(steps):
        actor, other = everybody[a % len(everybody)], everybody[b % len(everybody)]
        roster = actor.roster
        role = roster.role(actor.device)
        if what == "hear":
            actor.hear(other)
        elif role is None:
            continue
        elif what == "remove" and role is Role.OWNER and other is not actor:
            if other.device in roster.members:
                actor.remove(other)
        elif what == "add" and role is Role.OWNER:
            actor.do(Add(other.device, Role(1 + number % 4), other.name))
        elif what == "invite" and role is Role.OWNER:
            invitations.append(actor.invite(str(number), Role(1 + b % 4), uses=1 + b % 2))
        elif what == "join" and invitations:
            invitation = invitations[b % len(invitations)]
            if roster.invitation_state(device_of(invitation), 0) is InvitationState.OPEN:
                new = Person(f"new {number}")
                actor.admit(new, invitation)
                new.hear(actor)
                everybody.append(new)
        elif what == "revoke" and role is Role.OWNER and invitations:
            invitation = invitations[b % len(invitations)]
            if roster.invitation_state(device_of(invitation), 0) is InvitationState.OPEN:
                actor.revoke(invitation)
        elif what == "epoch" and role.writes:
            actor.begin_epoch()
        elif what == "write" and role.writes and actor.keys.current is not None:
            actor.write()
    return founder, everybody


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_whatever_happens_all_agree_and_the_removed_read_nothing_new(
    steps: list[tuple[str, int, int]],
) -> None:
    founder, everybody = play(steps)
    meet(*everybody)
    roster = founder.roster
    for person in everybody:
        assert person.roster == roster
        assert person.have == founder.have
    assert any(one.role is Role.OWNER for one in roster.members.values())
    assert not set(roster.members) & set(roster.removed)
    assert set(roster.members) <= set(roster.named)
    # A member that writes can always make an epoch that the removed cannot read.
    writer = next(p for p in everybody if roster.may_write(p.device))
    by_device = {person.device: person for person in everybody}
    if writer.keys.current is None:
        writer.begin_epoch()
    fit = set(writer.roster.fit_epochs)
    assert fit
    for device in roster.removed:
        opened = set(writer.roster.open_epochs(*by_device[device].seeds))
        assert not opened & fit


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(STEPS, st.data())
def test_the_fold_does_not_depend_on_the_order_of_arrival(
    steps: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    founder, everybody = play(steps)
    meet(*everybody)
    entries = roster_entries(founder)
    shuffled = data.draw(st.permutations(entries))
    assert Roster.fold(founder.folder, shuffled) == founder.roster
    assert Roster.fold(founder.folder, [*shuffled, *entries[:3]]) == founder.roster
    assert all(isinstance(void, Void) for void in founder.roster.void)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(STEPS, st.data())
def test_a_newcomer_takes_everything_in_whatever_order_it_comes(
    steps: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    founder, everybody = play(steps)
    meet(*everybody)
    newcomer, room = Person("newcomer"), WaitingRoom()
    newcomer.enter(founder.folder)
    for arrived in data.draw(st.permutations(founder.arrivals)):
        pending = [arrived]
        while pending:
            entry = pending.pop()
            verdict = newcomer.receive(entry)
            if isinstance(verdict, Wait):
                named = newcomer.roster.named_role(entry.header.device) is not None
                assert room.offer(entry, verdict.blocker, named=named)
            else:
                assert isinstance(verdict, Accept)
                pending += room.accepted(entry.header.device, entry.header.seq)
    assert room.statistics().entries == 0
    assert newcomer.have == founder.have
    assert newcomer.roster == founder.roster
