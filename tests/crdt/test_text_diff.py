"""Differences of lists, against the definition of a longest common subsequence."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt.text_diff import DIFFERENCES_MAX, differences

pieces = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=9)


@settings(deadline=None)
@given(pieces, pieces)
def test_they_make_the_new_list_with_the_fewest_steps(old: list[bytes], new: list[bytes]) -> None:
    blocks = differences(old, new)
    assert blocks is not None
    made: list[bytes] = []
    at = steps = 0
    for block in blocks:
        assert block.old_start > at or not made, "an equal piece lies between two blocks"
        made += old[at : block.old_start]
        assert len(made) == block.new_start
        made += new[block.new_start : block.new_end]
        at = block.old_end
        steps += block.old_end - block.old_start + block.new_end - block.new_start
    assert made + old[at:] == new
    assert steps == len(old) + len(new) - 2 * common(old, new)


def common(one: list[bytes], other: list[bytes]) -> int:
    """Length of the longest common subsequence, by the book."""
    row = [0] * (len(other) + 1)
    for a in one:
        last = row
        row = [0]
        for at, b in enumerate(other):
            row.append(last[at] + 1 if a == b else max(last[at + 1], row[at]))
    return row[-1]


@pytest.mark.slow
def test_too_many_differences_are_none() -> None:
    half = DIFFERENCES_MAX // 2
    old, new = [b"old %d" % n for n in range(half)], [b"new %d" % n for n in range(half)]
    assert differences(old, new) is not None
    assert differences([*old, b"x", b"same"], [*new, b"y", b"same"]) is None
    assert differences([], [b"x"] * (10 * DIFFERENCES_MAX)) is not None, "one block is no work"
