"""A program that goes on writing to a file which sync has replaced or removed under its hands."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.crashes import Mortal, mortals, twins

pytestmark = pytest.mark.slow

OLD, NEW, MINE = (bytes([n]) * 9_000 for n in b"onm")  # each a list of blocks

Act = Callable[[Mortal], None]


def replace(box: Mortal) -> None:
    box.fs.write_file("f", NEW)


def remove(box: Mortal) -> None:
    box.fs.unlink("f")


async def two(act: Act, *, exchanges: bool) -> list[Mortal]:
    """Both have the old file, and what Anna did to hers is about to reach Ben."""
    anna, ben = mortals(2, exchanges=exchanges)
    anna.fs.write_file("f", OLD)
    for box in (anna, ben):
        assert await box.live()
    act(anna)
    assert await anna.live()
    return [anna, ben]


async def settle(*boxes: Mortal) -> None:
    for _ in range(3):
        for box in boxes:
            assert await box.live()
            await box.look_again()


@pytest.mark.parametrize("when", ["before the next start", "after it"])
@pytest.mark.parametrize(
    ("act", "exchanges"),
    [(replace, True), (replace, False), (remove, True)],
    ids=["replaced", "replaced in two steps", "removed"],
)
async def test_what_is_written_after_a_crash_comes_back(
    act: Act, exchanges: bool, when: str
) -> None:
    """Wherever the node died, it knows what to look at again."""
    both = await two(act, exchanges=exchanges)
    nth = 0
    while True:
        nth += 1
        anna, ben = twins(both)
        program = ben.fs.open_write("f")
        if await ben.live(until=nth):
            break
        if when == "after it":
            assert await ben.live(), nth
        program.write_at(0, MINE)
        program.close()
        await settle(ben, anna)
        assert MINE in ben.tree().values(), nth
        assert ben.tree() == anna.tree(), nth
    assert nth > 10
