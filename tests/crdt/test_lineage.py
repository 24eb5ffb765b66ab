"""Ancestors and parents of versions."""

from __future__ import annotations

from crdt.lineage import Lineage, maximal
from crdt.slot import Content, Kind
from crdt.version_vector import VersionVector
from tests.support.replicas import device


def content(data: bytes, **counters: int) -> Content:
    """Version by letters: `a=1` is counter 1 of device 1."""
    version = VersionVector({device(ord(who) - 96): n for who, n in counters.items()})
    first = next(iter(version))
    return Content(
        version=version, device=first, lamport=1, kind=Kind.FILE, origin=(first, version[first]),
        size=len(data), inline=data,
    )  # fmt: skip


BASE = content(b"base", a=1)
NEWER = content(b"newer", a=2)
MINE, THEIRS = content(b"mine", a=3), content(b"theirs", a=2, b=1)
THIRD = content(b"third", a=1, c=1)
MERGED = content(b"merged", a=4, b=1)


def test_the_ancestor_is_the_newest_that_all_were_made_from() -> None:
    lineage = Lineage([BASE, NEWER, MINE, THEIRS, THIRD, MERGED])
    assert lineage.ancestor([MINE.version, THEIRS.version]) == NEWER
    assert lineage.ancestor([MINE.version, THIRD.version]) == BASE
    assert lineage.ancestor([MINE.version, THEIRS.version, THIRD.version]) == BASE
    assert lineage.ancestor([MERGED.version, THIRD.version]) == BASE
    assert Lineage([MINE, THEIRS]).ancestor([MINE.version, THEIRS.version]) is None


def test_two_ancestors_are_none_unless_their_bytes_are_equal() -> None:
    one, other = content(b"one", a=4, b=1, c=9), content(b"other", a=3, b=2, c=8)
    lineage = Lineage([MINE, THEIRS, BASE, NEWER, one, other])
    assert lineage.ancestor([one.version, other.version]) is None
    alike = content(b"mine", a=2, b=1)
    lineage = Lineage([MINE, alike, BASE, NEWER, one, other])
    found = lineage.ancestor([one.version, other.version])
    assert found is not None
    assert found.digest == MINE.digest


def test_parents_are_the_newest_that_a_version_has_seen() -> None:
    lineage = Lineage([BASE, NEWER, MINE, THEIRS, MERGED])
    assert lineage.parents(MERGED.version) == [MINE, THEIRS]
    assert lineage.parents(MINE.version) == [NEWER]
    assert lineage.parents(BASE.version) == []


def test_only_the_newest_count() -> None:
    assert maximal([BASE, MINE, NEWER, THEIRS, MINE]) == [MINE, THEIRS]
    assert maximal([]) == []
