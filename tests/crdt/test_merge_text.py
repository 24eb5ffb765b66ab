"""Text merge: what comes out for people, and what holds for all texts."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt.merge_text import TEXT_SIZE_MAX, Head, is_prose, is_text, merge_texts
from crdt.version_vector import VersionVector
from tests.support.replicas import device

VERSIONS = (VersionVector({device(1): 3}), VersionVector({device(1): 2, device(2): 7}))


def merge(ancestor: str, one: str, other: str, *, prose: bool = True) -> str | None:
    """Both orders, which must agree."""
    heads = Head(VERSIONS[0], one.encode()), Head(VERSIONS[1], other.encode())
    merged = merge_texts(ancestor.encode(), heads, prose=prose)
    assert merged == merge_texts(ancestor.encode(), heads[::-1], prose=prose)
    return None if merged is None else merged.decode()


NOTE = "# Title\n\nFirst paragraph.\n\nSecond paragraph.\n"


@pytest.mark.parametrize("prose", [True, False])
@pytest.mark.parametrize(
    ("one", "other", "merged"),
    [
        (
            NOTE.replace("First", "The first"),
            NOTE.replace("Second", "The second"),
            NOTE.replace("First", "The first").replace("Second", "The second"),
        ),
        (NOTE + "\nThird.\n", NOTE.replace("Title", "Heading"),
         NOTE.replace("Title", "Heading") + "\nThird.\n"),
        (NOTE.replace("First paragraph.\n\n", ""), NOTE + "\nThird.\n",
         NOTE.replace("First paragraph.\n\n", "") + "\nThird.\n"),
        (NOTE.replace("F", "f"), NOTE.replace("F", "f"), NOTE.replace("F", "f")),
        (NOTE.replace("F", "f"), NOTE, NOTE.replace("F", "f")),
        (NOTE, "", ""),
    ],
)  # fmt: skip
def test_changes_in_other_paragraphs_both_apply(
    one: str, other: str, merged: str, prose: bool
) -> None:
    assert merge(NOTE, one, other, prose=prose) == merged


def test_equal_changes_count_once() -> None:
    one, other = NOTE.replace("Title", "Heading"), NOTE.replace("Title", "Heading") + "\nThird.\n"
    assert merge(NOTE, one, other) == other
    list_of = "- bread\n- eggs\n"
    assert merge(list_of, list_of + "- milk\n", "- tea\n" + list_of + "- milk\n") == (
        "- tea\n- bread\n- eggs\n- milk\n"
    )


def test_words_of_one_line_merge_in_prose_only() -> None:
    assert merge("hello world\n", "hello brave world\n", "hello world!\n") == "hello brave world!\n"
    assert merge("hello world\n", "hello brave world\n", "hello world!\n", prose=False) is None
    assert merge("größe 😀 x\n", "größe 😀😀 x\n", "grösse 😀 x\n") == "grösse 😀😀 x\n"


def test_neighbouring_lines_are_other_lines() -> None:
    assert merge("a\nb\nc\n", "a\nB\nc\n", "a\nb\nC\n", prose=False) == "a\nB\nC\n"
    assert merge("a\nb\n", "x\na\nb\n", "A\nb\n", prose=False) == "x\nA\nb\n"
    assert merge("aa\nbb\n", "aa\nx\nbb\n", "AA\nbb\n", prose=False) == "AA\nx\nbb\n"


@pytest.mark.parametrize("prose", [True, False])
@pytest.mark.parametrize(
    ("ancestor", "one", "other"),
    [
        ("colour\n", "color\n", "colours\n"),  # the same word
        ("a\nold words here\nc\n", "a\nc\n", "a\nold new words here\nc\n"),
        ("base", "mine", "theirs"),
        ("1\n2\n3\n", "one\ntwo\n3\n", "1\nzwei\ndrei\n"),
    ],
)  # fmt: skip
def test_changes_of_the_same_words_are_left_to_people(
    ancestor: str, one: str, other: str, prose: bool
) -> None:
    assert merge(ancestor, one, other, prose=prose) is None


def test_what_both_add_at_one_place_stands_there_twice_in_prose_only() -> None:
    both = {"a\nb\nc\n", "a\nc\nb\n"}
    assert merge("a\n", "a\nb\n", "a\nc\n") in both
    assert merge("a\n", "a\nb", "a\nc\n") in both, "lines stay lines"
    assert merge("a", "a\nb", "a\nc") in {one[:-1] for one in both}
    assert merge("a\n", "a\nb\n", "a\nc\n", prose=False) is None
    assert merge("", "x\n", "y\n", prose=False) is None


def test_line_ends_stay_as_they_are() -> None:
    text = NOTE.replace("\n", "\r\n")
    one, other = text.replace("First", "1st"), text.replace("Second", "2nd")
    assert merge(text, one, other) == one.replace("Second", "2nd")


def test_what_is_no_text_or_too_large_is_not_merged() -> None:
    one, other = b"x\n" + NOTE.encode(), NOTE.encode() + b"y\n"
    for bad in (b"\xff\xfe", b"a\0b", b"x" * (TEXT_SIZE_MAX + 1)):
        assert not is_text(bad)
        for place in range(3):
            texts = [NOTE.encode(), one, other]
            texts[place] = bad
            heads = Head(VERSIONS[0], texts[1]), Head(VERSIONS[1], texts[2])
            assert merge_texts(texts[0], heads, prose=True) is None
    half = "x" * (TEXT_SIZE_MAX // 2)
    assert merge("a\n\nb\n", f"{half}\na\n\nb\n", f"a\n\nb\n{half}\n") is None, "comes to too much"
    quarter = half[: len(half) // 2]
    assert merge("a\n\nb\n", f"{quarter}\na\n\nb\n", f"a\n\nb\n{quarter}\n") is not None


@pytest.mark.slow
def test_hostile_texts_take_no_long_time() -> None:
    lines = "\n" * (TEXT_SIZE_MAX // 2)
    assert merge(lines, "x\n" + lines, lines + "y\n") == "x\n" + lines + "y\n"
    words = [" ".join(f"{letter}{n}" for n in range(100_000)) for letter in "abc"]
    assert merge(words[0], words[1], words[2]) is None


def test_prose_is_known_by_its_name() -> None:
    assert is_prose("Note.MD")
    assert is_prose("note (conflict ABCDEFG 2026-01-01).md")
    assert not any(map(is_prose, ("code.py", "data.json", "Cargo.lock", "feed.xml", "README")))


# --- for all texts --------------------------------------------------------------------------------

WORDS = ("one", "two", "zwö", "😀", "")
lines = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join), max_size=6
).map("\n".join)


def edited(text: str, edits: list[tuple[int, int, str]], who: str) -> str:
    """A person at work: each edit replaces some characters by a word of their own."""
    for number, (somewhere, gone, between) in enumerate(edits):
        at = somewhere % (len(text) + 1)
        text = f"{text[:at]}{between}{who}{number}{text[at + gone :]}"
    return text


edits = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 4), st.sampled_from([" ", "\n", ""])), max_size=3
)


@settings(deadline=None)
@given(lines, edits, edits, st.booleans())
def test_it_is_commutative_and_holds_what_both_wrote(
    ancestor: str, mine: list[tuple[int, int, str]], theirs: list[tuple[int, int, str]], prose: bool
) -> None:
    one, other = edited(ancestor, mine, "ANNA"), edited(ancestor, theirs, "BEN")
    merged = merge(ancestor, one, other, prose=prose)
    if merged is not None:
        for text, who in ((one, "ANNA"), (other, "BEN")):
            for number in range(3):
                assert (f"{who}{number}" in text) <= (f"{who}{number}" in merged)


@settings(deadline=None)
@given(lines, st.lists(edits, min_size=3, max_size=3), st.booleans())
def test_three_merge_alike_in_every_order(
    ancestor: str, made: list[list[tuple[int, int, str]]], prose: bool
) -> None:
    heads = [
        Head(VersionVector({device(number): 1}), edited(ancestor, one, f"WHO{number}").encode())
        for number, one in enumerate(made, 1)
    ]
    found = {merge_texts(ancestor.encode(), order, prose=prose) for order in permutations(heads)}
    assert len(found) == 1
    merged = found.pop()
    for head in heads if merged is not None else ():
        for word in re.findall(rb"WHO\d+", head.data):
            assert merged is not None
            assert word in merged


def test_one_version_twice_is_not_merged() -> None:
    heads = Head(VERSIONS[0], b"a\nb\n"), Head(VERSIONS[0], b"c\na\n")
    assert merge_texts(b"a\n", heads, prose=True) is None


@settings(deadline=None)
@given(lines, edits, st.booleans())
def test_one_side_unchanged_gives_the_other(
    ancestor: str, mine: list[tuple[int, int, str]], prose: bool
) -> None:
    text = edited(ancestor, mine, "ANNA")
    assert merge(ancestor, text, ancestor, prose=prose) == text
    assert merge(ancestor, text, text, prose=prose) == text


@settings(deadline=None)
@given(lines, lines, edits, edits)
def test_distant_changes_always_merge(
    above: str, below: str, mine: list[tuple[int, int, str]], theirs: list[tuple[int, int, str]]
) -> None:
    middle = "\n\n--- between ---\n\n"
    one, other = edited(above, mine, "ANNA"), edited(below, theirs, "BEN")
    merged = merge(above + middle + below, one + middle + below, above + middle + other)
    assert merged == one + middle + other


@pytest.mark.slow
def test_every_process_finds_the_same() -> None:
    program = (
        "from tests.crdt.test_merge_text import NOTE, merge\n"
        "print(merge(NOTE, NOTE + 'mine\\n', NOTE.replace('First', '1st') + 'theirs\\n'))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
        ).stdout
        for seed in ("0", "1", "2")
    }  # fmt: skip
    assert len(found) == 1
    assert "mine" in found.pop()
