"""What turns one list of pieces into another: the greedy algorithm of Myers, with a limit.

Our own, since devices with other versions of a library must find the very same differences: a text
merge rests on it. Pure.
Source: Eugene W. Myers, "An O(ND) Difference Algorithm and Its Variations", 1986.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DIFFERENCES_MAX: Final = 1_000  # pieces removed and added; bounds a diff at half a second, 8 MB


@dataclass(frozen=True, slots=True)
class Block:
    """`old[old_start:old_end]` is replaced by `new[new_start:new_end]`; one of them may be
    empty.
    """

    old_start: int
    old_end: int
    new_start: int
    new_end: int


def differences(old: Sequence[bytes], new: Sequence[bytes]) -> list[Block] | None:
    """The fewest removals and additions that make `new` out of `old`, in order.

    Returns:
        Blocks with at least one equal piece between any two; None beyond `DIFFERENCES_MAX`.
    """
    start, old_end, new_end = 0, len(old), len(new)
    while start < min(old_end, new_end) and old[start] == new[start]:
        start += 1
    while old_end > start and new_end > start and old[old_end - 1] == new[new_end - 1]:
        old_end -= 1
        new_end -= 1
    left, right = old[start:old_end], new[start:new_end]
    if not left or not right:
        return [Block(start, old_end, start, new_end)] if left or right else []
    trace = _trace(left, right)
    return None if trace is None else _blocks(trace, len(left), len(right), start)


def _trace(old: Sequence[bytes], new: Sequence[bytes]) -> list[list[int]] | None:
    """For each number of differences d: how far one gets on the diagonals -d, -d+2, ..., d."""
    if abs(len(old) - len(new)) > DIFFERENCES_MAX:
        return None
    trace: list[list[int]] = []
    before: list[int] = []
    for d in range(DIFFERENCES_MAX + 1):
        reached = []
        for step in range(d + 1):
            diagonal = 2 * step - d  # index in old less index in new
            x = 0 if d == 0 else _from(before, step, d)
            y = x - diagonal
            while x < len(old) and y < len(new) and old[x] == new[y]:
                x += 1
                y += 1
            reached.append(x)
            if x >= len(old) and y >= len(new):
                trace.append(reached)
                return trace
        trace.append(reached)
        before = reached
    return None


def _comes_down(before: list[int], step: int, d: int) -> bool:
    """True when the way to diagonal number `step` adds a piece, False when it removes one."""
    return step == 0 or (step < d and before[step - 1] < before[step])


def _from(before: list[int], step: int, d: int) -> int:
    """Where the way to diagonal number `step` begins, as an index in old."""
    return before[step] if _comes_down(before, step, d) else before[step - 1] + 1


def _blocks(trace: list[list[int]], x: int, y: int, offset: int) -> list[Block]:
    """Walk back through the trace from the end (x, y)."""
    steps: list[tuple[int, int, int, int]] = []
    for d in range(len(trace) - 1, 0, -1):
        before, step = trace[d - 1], (x - y + d) // 2
        if _comes_down(before, step, d):
            x = before[step]
            y = x - (2 * step - d + 1)
            steps.append((x, x, y, y + 1))
        else:
            x = before[step - 1]
            y = x - (2 * step - d - 1)
            steps.append((x, x + 1, y, y))
    blocks: list[Block] = []
    for old_start, old_end, new_start, new_end in reversed(steps):
        last = blocks[-1] if blocks else None
        here = (old_start + offset, new_start + offset)
        if last is not None and (last.old_end, last.new_end) == here:
            first = (last.old_start, last.new_start)
            blocks[-1] = Block(first[0], old_end + offset, first[1], new_end + offset)
        else:
            blocks.append(Block(here[0], old_end + offset, here[1], new_end + offset))
    return blocks
