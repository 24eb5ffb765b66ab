from __future__ import annotations

from dataclasses import replace

import pytest

from crdt.acceptance import (
    LAMPORT_JUMP_MAX,
    Accept,
    Aside,
    Duplicate,
    Fork,
    Own,
    Refuse,
    Wait,
    WaitingRoom,
)
from crdt.entry import START, Entry, EntryKind, build
from crdt.ids import FolderId
from crdt.roster_ops import Add, Remove, Role, pack_ops
from crdt.version_vector import VersionVector
from tests.people import Person, folder_of, meet


@pytest.fixture
def owner() -> Person:
    return Person("owner")


@pytest.fixture
def people(owner: Person) -> dict[str, Person]:
    return folder_of(
        owner,
        owner2=Role.OWNER,
        editor=Role.EDITOR,
        reader=Role.READER,
        relay=Role.RELAY,
    )


def refused(verdict: object, match: str) -> bool:
    assert isinstance(verdict, Refuse), verdict
    assert match in str(verdict.error)
    return True


def test_what_fits_is_accepted_and_then_a_duplicate(
    owner: Person, people: dict[str, Person]
) -> None:
    entry = people["editor"].write()
    assert owner.receive(entry) == Accept(counts=True)
    assert owner.receive(entry) == Duplicate()


def test_an_entry_of_another_folder_is_refused(owner: Person, people: dict[str, Person]) -> None:
    entry = people["editor"].write()
    moved = Entry(replace(entry.header, folder=FolderId(bytes(32))), entry.signature, entry.body)
    assert refused(owner.judge(moved), "another folder")


def test_a_wrong_signature_is_refused_and_names_the_device(
    owner: Person, people: dict[str, Person]
) -> None:
    entry = people["editor"].write()
    bad = Entry(entry.header, entry.signature[::-1], entry.body)
    assert refused(owner.judge(bad), people["editor"].device.short)


def test_a_forged_rewrite_of_a_held_entry_is_no_proof_of_a_fork(
    owner: Person, people: dict[str, Person]
) -> None:
    entry = people["editor"].write()
    owner.receive(entry)
    bad = Entry(replace(entry.header, lamport=99), entry.signature, entry.body)
    assert refused(owner.judge(bad), "signature")


def test_two_entries_with_one_seq_are_a_fork(owner: Person, people: dict[str, Person]) -> None:
    editor = people["editor"]
    first = editor.tree_entry()
    owner.receive(editor.write())
    second = build(
        editor.seed,
        folder=editor.folder,
        after=START,
        deps=VersionVector({owner.device: 1}),
        lamport=first.header.lamport + 1,
        kind=EntryKind.TREE,
        body=first.body,
        epoch=first.header.epoch,
    )
    assert owner.judge(second) == Fork(second, 1)


def test_an_entry_on_another_past_is_a_fork(owner: Person, people: dict[str, Person]) -> None:
    editor = people["editor"]
    owner.receive(editor.write())
    entry = editor.tree_entry()
    other = build(
        editor.seed,
        folder=editor.folder,
        after=replace(editor.positions[editor.device], head=b"x" * 32),
        deps=editor.have,
        lamport=entry.header.lamport,
        kind=EntryKind.TREE,
        body=entry.body,
        epoch=entry.header.epoch,
    )
    assert owner.judge(other) == Fork(other, 1)


def test_an_entry_of_our_own_that_we_lack_means_a_restored_backup(
    owner: Person, people: dict[str, Person]
) -> None:
    entry = people["editor"].tree_entry()
    assert people["editor"].judge(entry) == Own(entry)
    forged = Entry(entry.header, bytes(64), entry.body)
    assert refused(people["editor"].judge(forged), "signature")


def test_a_gap_waits_for_the_entry_before(owner: Person, people: dict[str, Person]) -> None:
    editor = people["editor"]
    first, second, third = editor.write(), editor.write(), editor.write()
    verdict = owner.judge(third)
    assert verdict == Wait(VersionVector({editor.device: 2}), (editor.device, 2))
    assert owner.receive(first) == owner.receive(second) == owner.receive(third) == Accept(True)


def test_unmet_deps_wait(owner: Person, people: dict[str, Person]) -> None:
    editor, second = people["editor"], people["owner2"]
    before = second.write()
    editor.receive(before)
    after = editor.write()
    missing = VersionVector({second.device: 1})
    assert owner.judge(after) == Wait(missing, (second.device, 1))
    owner.receive(before)
    assert owner.receive(after) == Accept(True)


@pytest.mark.parametrize("role", ["reader", "relay"])
def test_who_may_not_write_is_refused(owner: Person, people: dict[str, Person], role: str) -> None:
    person = people[role]
    person.seeds.append(owner.seed)  # as if it had the keys
    assert refused(owner.judge(person.tree_entry()), f"role is {role}")


def test_a_stranger_is_set_aside(owner: Person, people: dict[str, Person]) -> None:
    stranger = Person("stranger")
    stranger.enter(owner.folder)
    stranger.hear(owner)
    stranger.seeds.append(owner.seed)
    verdict = owner.judge(stranger.tree_entry())
    assert verdict == Aside(f"device {stranger.device.short} is not a member of this folder")
    assert isinstance(
        owner.judge(stranger.sign(pack_ops([Add(stranger.device, Role.OWNER, "s")]))), Aside
    )


def test_a_stranger_cannot_found_the_folder_anew(owner: Person, people: dict[str, Person]) -> None:
    stranger = Person("stranger")
    stranger.found()
    genesis = stranger.arrivals[0]
    assert refused(owner.judge(genesis), "another folder")
    own_genesis = owner.arrivals[0]
    stranger2 = Person("stranger 2")
    stranger2.enter(owner.folder)
    copied = stranger2.sign(own_genesis.body)
    assert isinstance(owner.judge(copied), Aside)
    empty = Person("empty")
    empty.enter(owner.folder)
    assert isinstance(empty.judge(copied), Aside)
    assert empty.judge(own_genesis) == Accept(True)


def test_lamports_that_jump_or_go_back_are_refused(
    owner: Person, people: dict[str, Person]
) -> None:
    editor = people["editor"]
    body = pack_ops([Add(editor.device, Role.OWNER, "me")])
    assert refused(
        owner.judge(editor.sign(body, lamport=owner.lamport + LAMPORT_JUMP_MAX + 1)), "lamport"
    )
    assert owner.judge(editor.sign(body, lamport=owner.lamport + LAMPORT_JUMP_MAX)) == Accept(True)
    owner.receive(editor.write())
    position = editor.positions[editor.device]
    back = build(
        editor.seed,
        folder=editor.folder,
        after=replace(position, lamport=0),
        deps=editor.have,
        lamport=position.lamport,
        kind=EntryKind.ROSTER,
        body=body,
    )
    assert refused(owner.judge(back), "lamport")


def test_an_epoch_that_nobody_began_is_refused(owner: Person, people: dict[str, Person]) -> None:
    entry = people["editor"].sign(b"body", EntryKind.TREE, epoch=7)
    assert refused(owner.judge(entry), "epoch 7")


def test_a_malformed_roster_entry_is_refused(owner: Person, people: dict[str, Person]) -> None:
    assert refused(owner.judge(people["owner2"].sign(b"\xc1")), "malformed")


def test_a_removed_device_is_cut_off_at_its_last_entry(
    owner: Person, people: dict[str, Person]
) -> None:
    editor, second = people["editor"], people["owner2"]
    seen, unseen = editor.write(), editor.write()
    owner.receive(seen)
    owner.remove(editor)
    assert owner.roster.counts(editor.device, 1)
    assert not owner.roster.counts(editor.device, 2)
    # Written before it knew: into the log, so that logs stay equal, but without effect.
    assert owner.receive(unseen) == Accept(counts=False)
    # Somebody who took it before the news arrives at the same.
    assert second.receive(seen) == second.receive(unseen) == Accept(counts=True)
    second.hear(owner)
    assert not second.roster.counts(editor.device, 2)
    # Written after it knew.
    keys = list(editor.seeds)
    editor.hear(owner)
    editor.seeds = [*keys, owner.seed]
    assert isinstance(owner.judge(editor.tree_entry()), Aside)
    assert isinstance(
        owner.judge(editor.sign(pack_ops([Remove(owner.device, 0, bytes(32))]))), Aside
    )


def test_a_removed_device_cannot_rewrite_what_counts(
    owner: Person, people: dict[str, Person]
) -> None:
    twin = Person("editor")
    twin.enter(owner.folder)
    twin.hear(owner)
    owner.receive(people["editor"].write())
    owner.remove(people["editor"])
    rewritten = twin.do(Add(twin.device, Role.OWNER, "x"), lamport=owner.lamport + 9)
    newcomer = Person("newcomer")
    newcomer.enter(owner.folder)
    newcomer.hear(owner)
    assert newcomer.judge(rewritten) == Fork(rewritten, 1)


def test_logs_become_equal_whatever_is_heard_first(
    owner: Person, people: dict[str, Person]
) -> None:
    editor, second, reader = people["editor"], people["owner2"], people["reader"]
    editor.write()
    owner.hear(editor)
    editor.write()
    second.hear(editor)
    owner.remove(editor)
    reader.hear(owner)
    second.write()
    reader.hear(second)
    meet(owner, second, reader)
    assert owner.have == second.have == reader.have
    assert owner.roster == second.roster == reader.roster


# --- the waiting room


def chain(person: Person, length: int) -> list[Entry]:
    return [person.write() for _ in range(length)]


def test_the_room_gives_back_what_waited_for_an_entry(
    owner: Person, people: dict[str, Person]
) -> None:
    editor = people["editor"]
    entries = chain(editor, 5)
    room = WaitingRoom()
    for entry in reversed(entries):
        verdict = owner.receive(entry)
        if isinstance(verdict, Wait):
            assert room.offer(entry, verdict.blocker, named=True)
            assert room.offer(entry, verdict.blocker, named=True)
    assert room.statistics().entries == 4
    pending = [entries[0]]
    while pending:
        entry = pending.pop()
        assert owner.receive(entry) in {Accept(True), Duplicate()}
        pending += room.accepted(entry.header.device, entry.header.seq)
    assert owner.have.covers(editor.device, 5)
    assert (room.statistics().entries, room.statistics().size) == (0, 0)


def test_one_device_fills_a_quarter_of_the_room(owner: Person, people: dict[str, Person]) -> None:
    room = WaitingRoom(count_max=8)
    editor, second = people["editor"], people["owner2"]
    kept = [room.offer(entry, (owner.device, 99), named=True) for entry in chain(editor, 4)]
    assert kept == [True, True, False, False]
    assert room.offer(second.write(), (owner.device, 99), named=True)
    assert room.statistics().turned_away == 2
    assert len(room.accepted(owner.device, 99)) == 3
    assert all(room.offer(entry, (owner.device, 99), named=True) for entry in chain(editor, 2))


def test_made_up_devices_share_one_part(owner: Person, people: dict[str, Person]) -> None:
    room = WaitingRoom(count_max=8)
    kept = []
    for number in range(4):
        stranger = Person(f"stranger {number}")
        stranger.enter(owner.folder)
        entry = stranger.sign(pack_ops([Add(stranger.device, Role.OWNER, "s")]))
        kept.append(room.offer(entry, (owner.device, 99), named=False))
    assert kept == [True, True, False, False]


def test_bytes_are_bounded_too(owner: Person, people: dict[str, Person]) -> None:
    entries = chain(people["editor"], 3)
    sizes = [len(entry.body) + 4 * len(entry.header.packed) for entry in entries]
    room = WaitingRoom(size_max=4 * (sizes[0] + sizes[1]))
    assert [room.offer(entry, (owner.device, 99), named=True) for entry in entries] == [
        True,
        True,
        False,
    ]


def test_everything_comes_out_at_once_in_order(owner: Person, people: dict[str, Person]) -> None:
    room = WaitingRoom()
    entries = chain(people["editor"], 3)
    for entry in reversed(entries):
        room.offer(entry, (owner.device, entry.header.seq), named=True)
    assert room.take_all() == entries
    assert room.take_all() == []
    assert room.accepted(owner.device, 1) == []
