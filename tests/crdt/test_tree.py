"""Every row of DESIGN section 4's table, on two or three devices that write at the same time."""

from __future__ import annotations

import pytest

from crdt.actions import Draft
from crdt.heads import derived_id, heads
from crdt.ids import RECOVERED, ROOT, ItemId
from crdt.slot import Kind
from crdt.tree import RECOVERED_CONTENT, view
from crdt.version_vector import VersionVector
from tests.support.replicas import DIRECTORY, Replica, file, item, sync

ONE, TWO, THREE, FOUR = (item(n) for n in range(1, 5))
COPY = "f (conflict {} 1970-01-01).txt"


@pytest.fixture
def a() -> Replica:
    return Replica(1)


@pytest.fixture
def b() -> Replica:
    return Replica(2)


def copy_name(by: Replica) -> str:
    return COPY.format(by.device.short)


# --- one row of the table each ------------------------------------------------------------------


def test_edit_and_edit_keeps_both_and_the_later_one_has_the_name(a: Replica, b: Replica) -> None:
    a.create(ONE, "f.txt", file(b"base"))
    sync(a, b)
    a.edit("f.txt", file(b"by a"))
    b.edit("f.txt", file(b"by b"))  # same lamport, greater device
    sync(a, b)
    assert a.tree() == {"f.txt": b"by b", copy_name(a): b"by a"}
    assert a.at("f.txt").conflicts == 1
    assert a.at(copy_name(a)).copy_of == ONE


def test_edit_and_edit_to_equal_content_collapses(a: Replica, b: Replica) -> None:
    a.create(ONE, "f.txt", file(b"base"))
    sync(a, b)
    a.edit("f.txt", file(b"same", mtime_ns=1))
    b.edit("f.txt", file(b"same", mtime_ns=2))
    sync(a, b)
    assert a.tree() == {"f.txt": b"same"}
    assert a.at("f.txt").conflicts == 0


def test_edit_and_delete_the_edit_survives(a: Replica, b: Replica) -> None:
    a.create(ONE, "f.txt", file(b"base"))
    sync(a, b)
    a.delete("f.txt")
    b.edit("f.txt", file(b"by b"))
    sync(a, b)
    assert a.tree() == {"f.txt": b"by b"}


def test_what_was_deleted_does_not_come_back_with_an_edit_of_something_older(
    a: Replica, b: Replica
) -> None:
    """The deleter had seen its own edit: nobody may still have those bytes."""
    a.create(ONE, "f.txt", file(b"base"))
    sync(a, b)
    a.edit("f.txt", file(b"by a"))
    a.delete("f.txt")
    b.edit("f.txt", file(b"by b"))
    sync(a, b)
    assert a.tree() == {"f.txt": b"by b"}
    a.move("f.txt", "g.txt")
    sync(a, b)
    assert b.tree() == {"g.txt": b"by b"}
    b.edit("g.txt", file(b"by b again"))
    sync(a, b)
    assert a.tree() == {"g.txt": b"by b again"}


def test_edit_and_rename_and_delete_of_the_edit(a: Replica, b: Replica) -> None:
    """It lives under its new name, with what lay there when it was renamed."""
    b.create(ONE, "f.txt", file(b"base"))
    sync(a, b)
    a.edit("f.txt", file(b"by a"))
    a.delete("f.txt")
    b.move("f.txt", "g.txt")
    sync(a, b)
    assert a.tree() == {"g.txt": b"base"}


def test_rename_and_rename_the_later_one_wins(a: Replica, b: Replica) -> None:
    a.create(ONE, "f.txt", file(b"base"))
    sync(a, b)
    a.move("f.txt", "a.txt")
    b.move("f.txt", "b.txt")
    sync(a, b)
    assert a.tree() == {"b.txt": b"base"}


def test_rename_and_edit_both_apply(a: Replica, b: Replica) -> None:
    a.create(ONE, "f.txt", file(b"base"))
    sync(a, b)
    a.move("f.txt", "a.txt")
    b.edit("f.txt", file(b"by b"))
    sync(a, b)
    assert a.tree() == {"a.txt": b"by b"}


def test_rename_and_delete_the_file_lives_under_its_new_name(a: Replica, b: Replica) -> None:
    a.create(ONE, "f.txt", file(b"base"))
    sync(a, b)
    a.move("f.txt", "a.txt")
    b.delete("f.txt")
    sync(a, b)
    assert a.tree() == {"a.txt": b"base"}


def test_mkdir_and_mkdir_is_one_directory_and_acts_on_both(a: Replica, b: Replica) -> None:
    a.create(ONE, "d", DIRECTORY)
    a.create(TWO, "d/a", file(b"by a"))
    b.create(THREE, "d", DIRECTORY)
    b.create(FOUR, "d/b", file(b"by b"))
    sync(a, b)
    assert a.tree() == {"d": None, "d/a": b"by a", "d/b": b"by b"}
    assert list(a.view.members(ONE)) == [ONE, THREE]
    assert a.view.row(THREE) is None
    a.move("d", "e")
    sync(a, b)
    assert b.tree() == {"e": None, "e/a": b"by a", "e/b": b"by b"}
    b.delete("e/a", "e/b", "e")
    sync(a, b)
    assert a.tree() == {}


def test_united_directories_unite_all_the_way_down(a: Replica, b: Replica) -> None:
    for one, first in ((a, 10), (b, 20)):
        one.create(item(first), "d", DIRECTORY)
        one.create(item(first + 1), "d/e", DIRECTORY)
        one.create(item(first + 2), f"d/e/{first}", file(b"x"))
    sync(a, b)
    assert a.tree() == {"d": None, "d/e": None, "d/e/10": b"x", "d/e/20": b"x"}


def test_file_and_directory_the_directory_keeps_the_name(a: Replica, b: Replica) -> None:
    a.create(ONE, "f.txt", file(b"by a"))
    b.create(TWO, "f.txt", DIRECTORY)
    b.create(THREE, "f.txt/inside", file(b"by b"))
    sync(a, b)
    assert a.tree() == {"f.txt": None, "f.txt/inside": b"by b", copy_name(a): b"by a"}


def test_file_and_file_the_least_item_keeps_the_name(a: Replica, b: Replica) -> None:
    b.create(TWO, "f.txt", file(b"by b"))
    a.create(ONE, "f.txt", file(b"by a"))
    sync(a, b)
    assert a.tree() == {"f.txt": b"by a", copy_name(b): b"by b"}
    assert a.at(copy_name(b)).copy_of is None  # an item of its own, not a copy


def test_file_and_file_of_equal_content_show_once(a: Replica, b: Replica) -> None:
    a.create(ONE, "f.txt", file(b"same"))
    b.create(TWO, "f.txt", file(b"same", executable=True))
    sync(a, b)
    assert a.tree() == {"f.txt": b"same"}
    assert list(a.view.members(ONE)) == [ONE, TWO]


def test_moves_in_a_cycle_the_newest_falls_back(a: Replica, b: Replica) -> None:
    a.create(ONE, "one", DIRECTORY)
    a.create(TWO, "two", DIRECTORY)
    sync(a, b)
    a.move("one", "two/one")
    b.move("two", "one/two")  # the newer one: same lamport, greater device
    sync(a, b)
    assert a.tree() == {"two": None, "two/one": None}


def test_delete_directory_and_create_inside_the_directory_lives(a: Replica, b: Replica) -> None:
    a.create(ONE, "d", DIRECTORY)
    a.create(TWO, "d/old", file(b"old"))
    sync(a, b)
    a.delete("d/old", "d")
    b.create(THREE, "d/new", file(b"new"))
    sync(a, b)
    assert a.tree() == {"d": None, "d/new": b"new"}
    a.delete("d/new")
    sync(a, b)
    assert b.tree() == {}  # nothing is left that would keep it


def test_delete_directory_and_move_inside_the_directory_lives(a: Replica, b: Replica) -> None:
    a.create(ONE, "d", DIRECTORY)
    a.create(TWO, "f", file(b"f"))
    sync(a, b)
    a.delete("d")
    b.move("f", "d/f")
    sync(a, b)
    assert a.tree() == {"d": None, "d/f": b"f"}


@pytest.mark.parametrize(
    ("one", "two"), [("Makefile", "makefile"), ("\u00e9", "e\u0301")], ids=["case", "normal form"]
)
def test_names_that_some_disks_fold_are_two_items(
    one: str, two: str, a: Replica, b: Replica
) -> None:
    a.create(ONE, one, file(b"1"))
    b.create(TWO, two, file(b"2"))
    sync(a, b)
    assert a.tree() == {one: b"1", two: b"2"}


@pytest.mark.parametrize("name", ["a:b", "NUL", "tail.", "?*<>|\\"])
def test_a_name_illegal_elsewhere_stays_in_the_tree(name: str, a: Replica, b: Replica) -> None:
    a.create(ONE, name, file(b"1"))
    sync(a, b)
    assert b.tree() == {name: b"1"}


# --- what the table leaves unsaid ---------------------------------------------------------------


def test_delete_and_delete_is_deleted(a: Replica, b: Replica) -> None:
    a.create(ONE, "f.txt", file(b"base"))
    sync(a, b)
    a.delete("f.txt")
    b.delete("f.txt")
    sync(a, b)
    assert a.tree() == {}


def test_a_deletion_by_two_who_saw_different_versions(a: Replica, b: Replica) -> None:
    c = Replica(3)
    a.create(ONE, "f.txt", file(b"base"))
    sync(a, b, c)
    c.edit("f.txt", file(b"by c"))
    a.delete("f.txt")
    b.pull(c)
    b.delete("f.txt")
    sync(a, b, c)
    assert a.tree() == {}


def test_a_write_that_knows_of_the_deletion_restores(a: Replica, b: Replica) -> None:
    a.create(ONE, "f.txt", file(b"base"))
    old = a.at("f.txt").content
    a.delete("f.txt")
    sync(a, b)
    b.act(lambda w: w.edit(ONE, file(b"again"), base=old.version))
    sync(a, b)
    assert a.tree() == {"f.txt": b"again"}
    a.delete("f.txt")
    sync(a, b)
    assert b.tree() == {}


def test_touch_and_edit_shows_the_edit_alone(a: Replica, b: Replica) -> None:
    a.create(ONE, "f.txt", file(b"base"))
    sync(a, b)
    a.edit("f.txt", file(b"by a"))
    for n in range(1, 4):  # touches, so that they are newer
        b.edit("f.txt", file(b"base", mtime_ns=n, executable=True))
    sync(a, b)
    assert a.tree() == {"f.txt": b"by a"}


def test_two_touches_do_not_make_each_other_needless(a: Replica, b: Replica) -> None:
    c, d = Replica(3), Replica(4)
    a.create(ONE, "f.txt", file(b"base"))
    sync(a, b, c, d)
    a.edit("f.txt", file(b"by a"))
    b.edit("f.txt", file(b"by b"))
    c.pull(a)
    d.pull(a)
    c.edit("f.txt", file(b"by a", mtime_ns=1))
    d.edit("f.txt", file(b"by a", mtime_ns=2))
    sync(a, b, c, d)
    assert sorted(map(str, a.tree().values())) == ["b'by a'", "b'by b'"]


def test_nothing_left_to_fall_back_on_goes_to_recovered(a: Replica, b: Replica) -> None:
    a.create(ONE, "one", DIRECTORY)
    b.create(TWO, "two", DIRECTORY)
    a.create(THREE, "one/f", file(b"1"))
    sync(a, b)
    for one, moved, to in ((a, ONE, TWO), (b, TWO, ONE)):  # until no slot knows another place
        for n in range(4):
            inside = item(10 * to[15] + n)
            one.create(inside, f"{one.view.rows[to].name}/{n}", DIRECTORY)
            one.act(lambda w, m=moved, p=inside: w.move(m, p, "in"))  # type: ignore[misc]
    sync(a, b)
    assert a.at("Recovered").item == RECOVERED
    assert a.at("Recovered").content == RECOVERED_CONTENT
    assert b"1" in a.tree().values()


def test_renames_use_up_nothing_to_fall_back_on(a: Replica, b: Replica) -> None:
    a.create(ONE, "one", DIRECTORY)
    b.create(TWO, "two", DIRECTORY)
    sync(a, b)
    a.move("one", "two/one")
    b.move("two", "one/two")
    for n in range(6):
        a.move(f"two/{n or 'one'}", f"two/{n + 1}")
        b.move(f"one/{n or 'two'}", f"one/{n + 1}")
    sync(a, b)
    assert set(a.tree()) == {"two", "two/6"}


@pytest.mark.parametrize("kind", ["unknown", "file"])
def test_a_parent_that_is_no_directory_counts_as_recovered(kind: str, a: Replica) -> None:
    parent = item(9)
    if kind == "file":
        a.create(parent, "plain", file(b"x"))
    a.act(lambda w: w.create(ONE, parent, "f", file(b"1")))
    assert a.tree()["Recovered/f"] == b"1"
    a.move("Recovered/f", "f")
    assert "Recovered" not in a.tree()  # nobody wrote it: it shows while something lies in it


def test_moving_into_recovered_makes_it_a_directory_like_others(a: Replica, b: Replica) -> None:
    a.act(lambda w: w.create(ONE, item(9), "f", file(b"1")))
    a.create(TWO, "g", file(b"2"))
    a.move("g", "Recovered/g")
    a.delete("Recovered/f", "Recovered/g")
    sync(a, b)
    assert b.tree() == {"Recovered": None}
    b.delete("Recovered")
    sync(a, b)
    assert a.tree() == {}


def test_a_directory_of_that_name_unites_with_recovered(a: Replica) -> None:
    a.act(lambda w: w.create(ONE, item(9), "f", file(b"1")))
    a.create(TWO, "Recovered2", DIRECTORY)
    a.move("Recovered2", "Recovered")
    assert a.tree() == {"Recovered": None, "Recovered/f": b"1"}
    a.move("Recovered/f", "f")
    assert a.tree() == {"Recovered": None, "f": b"1"}


def test_the_order_of_breaking_cycles_does_not_matter(a: Replica, b: Replica) -> None:
    names = [item(n) for n in range(1, 7)]
    for n, one in enumerate(names):
        a.create(one, f"d{n}", DIRECTORY)
    sync(a, b)
    for n in (0, 2, 4):
        a.act(lambda w, n=n: w.move(names[n], names[n + 1], "x"))  # type: ignore[misc]
        b.act(lambda w, n=n: w.move(names[n + 1], names[n], "x"))  # type: ignore[misc]
    sync(a, b)
    backwards = dict(sorted(a.state.items(), reverse=True))
    assert view(backwards).rows == view(a.state).rows


def test_losers_that_want_one_name_get_different_ones(a: Replica, b: Replica) -> None:
    """Two files of one author, day and name: the second takes more of its id into the name."""
    c = Replica(3)
    b.create(ONE, "f.txt", file(b"1"))
    a.create(TWO, "f.txt", file(b"2"))
    a.act(lambda w: w.create(THREE, ROOT, "f.txt", file(b"3")))
    c.create(FOUR, copy_name(a), file(b"4"))  # somebody else has the first choice already
    sync(a, b, c)
    tree = a.tree()
    assert tree["f.txt"] == b"1"
    assert tree[copy_name(a)] == b"4"
    assert sorted(tree.values(), key=str) == [b"1", b"2", b"3", b"4"]
    assert len(tree) == 4


def test_a_suffix_is_replaced_not_doubled(a: Replica, b: Replica) -> None:
    a.create(ONE, "f (conflict ABCDEFG 2020-02-02).txt", file(b"base"))
    sync(a, b)
    a.edit("f (conflict ABCDEFG 2020-02-02).txt", file(b"by a"))
    b.edit("f (conflict ABCDEFG 2020-02-02).txt", file(b"by b"))
    sync(a, b)
    assert set(a.tree()) == {"f (conflict ABCDEFG 2020-02-02).txt", copy_name(a)}


@pytest.mark.parametrize(
    "name", ["n" * 255, "\u00e4" * 127, "a." + "e" * 253, ".bashrc", "x.tar.gz"]
)
def test_names_of_copies_fit(name: str, a: Replica, b: Replica) -> None:
    a.create(ONE, name, file(b"base"))
    sync(a, b)
    a.edit(name, file(b"by a"))
    b.edit(name, file(b"by b"))
    sync(a, b)
    copies = [row.name for row in a.view.rows.values() if row.copy_of is not None]
    assert len(copies) == 1
    assert len(copies[0].encode()) <= 255
    assert f"(conflict {a.device.short}" in copies[0]


def test_symlinks_conflict_like_files_but_carry_no_date(a: Replica, b: Replica) -> None:
    a.create(ONE, "l", Draft(Kind.SYMLINK, target="1"))
    sync(a, b)
    a.edit("l", Draft(Kind.SYMLINK, target="2"))
    b.edit("l", Draft(Kind.SYMLINK, target="3"))
    sync(a, b)
    assert a.tree() == {"l": "3", f"l (conflict {a.device.short})": "2"}


def test_losers_of_hidden_twins_are_shown(a: Replica, b: Replica) -> None:
    c = Replica(3)
    a.create(ONE, "f.txt", file(b"same"))
    b.create(TWO, "f.txt", file(b"base"))
    c.pull(b)
    b.edit("f.txt", file(b"only here"))
    c.edit("f.txt", file(b"same"))
    sync(a, b, c)
    assert sorted(a.tree().values(), key=str) == [b"only here", b"same"]
    assert a.at("f.txt").item == ONE


def test_a_row_counts_its_copies_and_takes_the_newest_revision(a: Replica, b: Replica) -> None:
    a.create(ONE, "d", DIRECTORY)
    b.create(TWO, "d", DIRECTORY)
    sync(a, b)
    shown = view(a.state, {ONE: 3, TWO: 7})
    assert [row.revision for row in shown.rows.values()] == [7]


def heads_of(replica: Replica, of: ItemId) -> list[bytes | None]:
    return [content.inline for content in heads(replica.view.slots(of))]


def test_three_way_conflict_resolved_twice_at_once_makes_the_same_items(
    a: Replica, b: Replica
) -> None:
    c = Replica(3)
    a.create(ONE, "f.txt", file(b"base"))
    sync(a, b, c)
    for one in (a, b, c):
        one.edit("f.txt", file(one.device[:1]))
    sync(a, b, c)
    losers = [row.item for row in a.view.rows.values() if row.copy_of]
    assert len(losers) == 2
    before = a.tree()
    a.resolve("f.txt")
    b.resolve("f.txt")
    sync(a, b, c)
    assert a.tree() == before
    assert {row.item for row in a.view.rows.values()} == {ONE, *losers}
    assert heads_of(a, ONE) == [c.device[:1]]


def test_a_derived_item_depends_on_item_and_version_alone() -> None:
    version = VersionVector({Replica(1).device: 1})
    ids = {derived_id(of, v) for of in (ONE, TWO) for v in (version, VersionVector())}
    assert len(ids) == 4
    assert derived_id(ONE, version) in ids
