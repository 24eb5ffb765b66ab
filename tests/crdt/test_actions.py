"""What each action writes, and above all what it must not push out."""

from __future__ import annotations

import pytest

from crdt.actions import Draft, Writer
from crdt.heads import derived_id, maximal
from crdt.ids import RECOVERED, ROOT
from crdt.slot import PLACEMENTS_MAX, Content, Kind
from crdt.version_vector import EMPTY
from tests.support.replicas import DIRECTORY, Replica, file, item, sync

ONE, TWO, THREE = (item(n) for n in range(1, 4))


@pytest.fixture
def a() -> Replica:
    return Replica(1)


@pytest.fixture
def b() -> Replica:
    return Replica(2)


def conflict(a: Replica, b: Replica) -> str:
    """Let `f` hold b's edit, and a copy of it a's; returns the copy's name."""
    a.create(ONE, "f", file(b"base"))
    sync(a, b)
    a.edit("f", file(b"by a"))
    b.edit("f", file(b"by b"))
    sync(a, b)
    return f"f (conflict {a.device.short} 1970-01-01)"


def slot_content(replica: Replica, path: str = "f") -> Content:
    content = replica.state[replica.at(path).item, replica.device].content
    assert content is not None
    return content


# --- conflicts and their copies -----------------------------------------------------------------


def test_editing_the_winner_keeps_the_loser(a: Replica, b: Replica) -> None:
    copy = conflict(a, b)
    before = a.at(copy).item
    a.edit("f", file(b"again"))
    sync(a, b)
    assert b.tree() == {"f": b"again", copy: b"by a"}
    assert (b.at(copy).item, b.at(copy).copy_of) == (before, None)


def test_deleting_the_winner_keeps_the_loser_in_its_place(a: Replica, b: Replica) -> None:
    copy = conflict(a, b)
    a.delete("f")
    sync(a, b)
    assert b.tree() == {copy: b"by a"}


def test_renaming_the_winner_leaves_the_loser(a: Replica, b: Replica) -> None:
    copy = conflict(a, b)
    a.move("f", "g")
    sync(a, b)
    assert b.tree() == {"g": b"by b", copy: b"by a"}


def test_editing_a_copy_makes_it_real(a: Replica, b: Replica) -> None:
    copy = conflict(a, b)
    b.edit(copy, file(b"new"))
    sync(a, b)
    assert a.tree() == {"f": b"by b", copy: b"new"}
    assert a.at("f").conflicts == 0


def test_deleting_a_copy_settles_the_conflict(a: Replica, b: Replica) -> None:
    copy = conflict(a, b)
    b.delete(copy)
    sync(a, b)
    assert a.tree() == {"f": b"by b"}
    a.edit("f", file(b"on"))
    sync(a, b)
    assert b.tree() == {"f": b"on"}


def test_renaming_a_copy_makes_it_real(a: Replica, b: Replica) -> None:
    copy = conflict(a, b)
    b.move(copy, "mine")
    sync(a, b)
    assert a.tree() == {"f": b"by b", "mine": b"by a"}


def test_deleting_winner_and_copy_in_either_order(a: Replica, b: Replica) -> None:
    copy = conflict(a, b)
    a.delete("f", copy)
    b.delete(copy, "f")
    assert a.tree() == b.tree() == {}
    sync(a, b)
    assert a.tree() == {}


def test_resolving_by_the_name_of_a_copy(a: Replica, b: Replica) -> None:
    copy = conflict(a, b)
    shown = a.tree()
    a.resolve(copy)
    sync(a, b)
    assert b.tree() == shown
    assert not any(row.copy_of for row in b.view.rows.values())


def test_a_resolution_yields_to_an_edit_of_the_winner(a: Replica, b: Replica) -> None:
    """It says nothing about the bytes, so it must not compete with somebody who changes them."""
    copy = conflict(a, b)
    a.resolve("f")
    b.edit("f", file(b"on"))
    sync(a, b)
    assert a.tree() == {"f": b"on", copy: b"by a"}


def test_a_rename_keeps_a_resolution_that_yields(a: Replica, b: Replica) -> None:
    """It is not shown, but without it the loser would be a head again."""
    conflict(a, b)
    a.resolve("f")
    b.edit("f", file(b"on"))
    sync(a, b)
    a.move("f", "g")
    assert all(content.inline != b"by a" for content in maximal(a.view.slots(ONE)))


# --- stale people -------------------------------------------------------------------------------


def test_an_edit_of_a_stale_version_is_a_conflict(a: Replica, b: Replica) -> None:
    a.create(ONE, "f", file(b"base"))
    sync(a, b)
    base = a.at("f").content
    b.edit("f", file(b"by b"))
    sync(a, b)
    a.edit("f", file(b"by a"), base=base)
    sync(a, b)
    assert sorted(map(str, a.tree().values())) == ["b'by a'", "b'by b'"]


def test_own_older_content_is_not_swallowed_by_an_edit_of_anothers(a: Replica, b: Replica) -> None:
    """Own counters are covered without being named, and the slot has room for one content."""
    a.create(ONE, "f", file(b"base"))
    sync(a, b)
    b.edit("f", file(b"by b"))
    stale = b.at("f").content
    for n in range(3):  # newer than b's, so that a's is the winner
        a.edit("f", file(b"by a %d" % n))
    sync(a, b)
    a.edit("f", file(b"on"), base=stale)
    sync(a, b)
    assert a.tree()["f"] == b"on"
    assert sorted(map(str, a.tree().values())) == ["b'by a 2'", "b'on'"]


def test_a_touch_of_own_older_content_is_not_swallowed_either(a: Replica, b: Replica) -> None:
    """The new version does not dominate the touch, but the touch would yield to it."""
    c = Replica(3)
    a.create(ONE, "f", file(b"base"))
    sync(a, b, c)
    c.edit("f", file(b"by c"))
    stale = c.at("f").content
    a.edit("f", file(b"by a"))
    b.pull(a)
    for n in range(1, 4):
        b.edit("f", file(b"by a", mtime_ns=n))
    sync(a, b, c)
    a.edit("f", file(b"on"), base=stale)  # a's disk still showed c's version
    sync(a, b, c)
    assert sorted(map(str, a.tree().values())) == ["b'by a'", "b'on'"]


def test_an_edit_of_no_known_version_overwrites_nothing(a: Replica, b: Replica) -> None:
    copy = conflict(a, b)
    of = a.at(copy).item
    a.act(lambda w: w.edit(of, file(b"unsure"), base=EMPTY))
    sync(a, b)
    assert sorted(map(str, b.tree().values())) == ["b'by a'", "b'by b'", "b'unsure'"]
    assert b.tree()["f"] == b"by b"


def test_an_edit_leaves_a_loser_alone_that_the_person_had_not_seen(a: Replica, b: Replica) -> None:
    copy = conflict(a, b)
    loser, base = a.at(copy).item, a.at("f").content.version
    b.act(lambda w: w.edit(ONE, file(b"on"), base=base), saw=lambda of: of != loser)
    sync(a, b)
    assert a.tree() == {"f": b"on", copy: b"by a"}
    assert a.at(copy).copy_of == ONE


def test_what_an_edit_pushes_out_gets_a_name_of_its_own(a: Replica) -> None:
    """And never the item's, whichever of the two ids is the smaller one."""
    for n in range(1, 9):
        a.create(item(n), f"{n}", file(b"old"))
        a.act(lambda w, n=n: w.edit(item(n), file(b"new"), base=EMPTY))  # type: ignore[misc]
        assert a.tree()[f"{n}"] == b"new"
    assert sum(data == b"old" for data in a.tree().values()) == 8


def test_a_touch_of_equal_bytes_on_either_side_is_no_conflict(a: Replica, b: Replica) -> None:
    """The person saw the winner's bytes, though under another version."""
    a.create(ONE, "f", file(b"base"))
    sync(a, b)
    a.edit("f", file(b"same"))
    base = a.at("f").content
    b.edit("f", file(b"same"))
    sync(a, b)
    a.edit("f", file(b"on"), base=base)
    sync(a, b)
    assert b.tree() == {"f": b"on"}


def test_an_edit_of_a_deleted_item_brings_nothing_else_back(a: Replica, b: Replica) -> None:
    c = Replica(3)
    a.create(ONE, "f", file(b"base"))
    base = a.at("f").content
    sync(a, b, c)
    b.edit("f", file(b"by b"))
    a.edit("f", file(b"by a"))
    b.delete("f")
    a.delete("f")
    sync(a, b, c)
    assert c.tree() == {}
    c.act(lambda w: w.edit(ONE, file(b"by c"), base=base.version), saw=lambda _: False)
    sync(a, b, c)
    assert a.tree() == {"f": b"by c"}


def test_deleting_the_winner_leaves_a_loser_that_was_not_seen_to_its_author(
    a: Replica, b: Replica
) -> None:
    # Found by killing nodes: the loser became a copy, its author replaced it meanwhile, and every
    # device waited for bytes that nobody had any more.
    a.create(ONE, "f", file(b"base"))
    sync(a, b)
    base = a.at("f").content
    a.edit("f", file(b"by a"))
    b.edit("f", file(b"by b"))
    b.receive(a.entries[-1])
    assert b.tree()["f"] == b"by b"
    b.act(lambda w: w.delete(ONE), saw=lambda _: False)
    assert b.tree() == {"f": b"by a"}
    a.edit("f", file(b"by a again"))
    sync(a, b)
    assert a.tree() == {"f": b"by a again"}
    assert base.digest not in {row.content.digest for row in a.view.rows.values()}


def test_moving_the_winner_takes_a_loser_along_that_was_not_seen(a: Replica, b: Replica) -> None:
    a.create(ONE, "f", file(b"base"))
    sync(a, b)
    a.edit("f", file(b"by a"))
    b.edit("f", file(b"by b"))
    b.receive(a.entries[-1])
    b.act(lambda w: w.move(ONE, ROOT, "g"), saw=lambda _: False)
    a.edit("f", file(b"by a again"))
    sync(a, b)
    assert sorted(a.tree().values(), key=str) == [b"by a again", b"by b"]
    assert "g" in a.tree()


def test_a_directory_made_again_is_one_directory(a: Replica) -> None:
    a.create(ONE, "d", DIRECTORY)
    a.delete("d")
    a.act(lambda w: w.edit(ONE, DIRECTORY, base=EMPTY), lambda w: w.move(ONE, ROOT, "d"))
    assert a.tree() == {"d": None}


def test_a_copy_that_somebody_replaced_is_edited_where_it_lay(a: Replica, b: Replica) -> None:
    copy = conflict(a, b)
    gone, base = a.at(copy), a.at(copy).content
    b.act(lambda w: w.edit(ONE, file(b"other"), base=slot_content(a).version))
    b.delete(*[name for name in b.tree() if b.tree()[name] == b"other"])
    sync(a, b)
    assert a.view.row(gone.item) is None
    assert a.act(lambda w: w.move(gone.item, ROOT, "x")) is None
    assert a.act(lambda w: w.delete(gone.item)) is None
    a.act(lambda w: w.edit(gone.item, file(b"mine"), base=base.version, place=(ROOT, copy)))
    sync(a, b)
    assert b.tree()[copy] == b"mine"


# --- twins and united directories ---------------------------------------------------------------


def twins(a: Replica, b: Replica) -> None:
    a.create(ONE, "f", file(b"same"))
    b.create(TWO, "f", file(b"same"))
    sync(a, b)


def test_editing_a_file_with_twins_leaves_one_file(a: Replica, b: Replica) -> None:
    twins(a, b)
    b.edit("f", file(b"on"))
    sync(a, b)
    assert a.tree() == {"f": b"on"}


def test_moving_and_deleting_a_file_with_twins_acts_on_all(a: Replica, b: Replica) -> None:
    twins(a, b)
    b.move("f", "g")
    sync(a, b)
    assert a.tree() == {"g": b"same"}
    a.delete("g")
    sync(a, b)
    assert b.tree() == {}


def test_a_hidden_twin_acts_for_itself(a: Replica, b: Replica) -> None:
    twins(a, b)
    base = b.view.slots(TWO)[b.device].content
    assert base is not None
    b.act(
        lambda w: w.edit(TWO, file(b"two"), base=base.version),
        lambda w: w.edit(ONE, file(b"one"), base=b.at("f").content.version),
    )
    sync(a, b)
    assert sorted(map(str, a.tree().values())) == ["b'one'", "b'two'"]


def test_a_united_directory_never_moves_into_itself(a: Replica, b: Replica) -> None:
    a.create(ONE, "d", DIRECTORY)
    b.create(TWO, "d", DIRECTORY)
    b.create(THREE, "d/f", file(b"1"))
    sync(a, b)
    a.act(lambda w: w.move(ONE, ONE, "inner"))  # the disk still showed two directories
    sync(a, b)
    assert b.tree() == {"d": None, "d/inner": None, "d/inner/f": b"1"}


# --- the shape of the writes --------------------------------------------------------------------


def test_several_actions_make_one_write_an_item(a: Replica) -> None:
    entry = a.act(
        lambda w: w.create(ONE, ROOT, "d", DIRECTORY),
        lambda w: w.create(TWO, ONE, "f", file(b"1")),
        lambda w: w.move(TWO, ONE, "g"),
    )
    assert entry is not None
    assert [of for of, _ in entry.writes] == [ONE, TWO]
    assert a.tree() == {"d": None, "d/g": b"1"}
    assert all(slot.counter == entry.seq for _, slot in entry.writes)


def test_a_rename_never_copies_anothers_content(a: Replica, b: Replica) -> None:
    a.create(ONE, "f", file(b"1"))
    sync(a, b)
    b.move("f", "g")
    assert b.state[ONE, b.device].content is None


def test_a_rename_drops_own_content_once_it_was_replaced(a: Replica, b: Replica) -> None:
    a.create(ONE, "f", file(b"1"))
    a.move("f", "g")
    assert slot_content(a, "g").inline == b"1"
    sync(a, b)
    b.edit("g", file(b"2"))
    sync(a, b)
    a.move("g", "h")
    assert a.state[ONE, a.device].content is None
    sync(a, b)
    assert b.tree() == {"h": b"2"}


def test_a_slot_keeps_the_newest_placements(a: Replica) -> None:
    for n in range(1, 8):
        a.create(item(n), f"d{n}", DIRECTORY)
    a.create(item(9), "f", file(b""))
    for n in range(1, 8):
        a.act(lambda w, n=n: w.move(item(9), item(n), "f"))  # type: ignore[misc]
    places = a.state[item(9), a.device].placements
    assert len(places) == PLACEMENTS_MAX
    assert [p.parent for p in places] == [item(n) for n in (7, 6, 5, 4)]


def test_changing_metadata_alone_keeps_the_origin(a: Replica, b: Replica) -> None:
    a.create(ONE, "f", file(b"1"))
    sync(a, b)
    b.edit("f", file(b"1", executable=True))
    assert slot_content(b).origin == (a.device, 1)
    assert slot_content(b).executable
    b.edit("f", file(b"2"))
    assert slot_content(b).origin == (b.device, 2)


def test_moving_into_recovered_writes_it_first(a: Replica) -> None:
    a.act(lambda w: w.create(ONE, item(99), "lost", file(b"1")))
    a.create(TWO, "f", file(b"2"))
    writer = Writer(a.view, device=a.device, counter=3, lamport=3)
    writer.move(TWO, RECOVERED, "f")
    assert [of for of, _ in writer.writes] == [RECOVERED, TWO]


def test_a_draft_has_the_digest_of_its_content(a: Replica) -> None:
    for n, draft in enumerate((file(b"1", mtime_ns=5), Draft(Kind.SYMLINK, target="t"), DIRECTORY)):
        a.create(item(n + 1), f"{n}", draft)
        assert a.at(f"{n}").content.digest == draft.digest


def test_two_who_act_on_one_conflict_make_the_same_items(a: Replica, b: Replica) -> None:
    copy = conflict(a, b)
    loser = a.at(copy)
    a.edit("f", file(b"a2"))
    b.edit(copy, file(b"b2"))
    sync(a, b)
    assert a.tree() == {"f": b"a2", copy: b"b2"}
    assert a.at(copy).item == loser.item == derived_id(ONE, loser.content.version)
