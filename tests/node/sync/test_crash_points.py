"""The process stops at the n-th thing it does to disk or index, for every n; then it starts again.

In each scenario Anna has done something in her folder and Ben's device receives it. Either device
dies at each of its operations, by a kill (all that was written is there) or by a power cut (what
was not synced is there, gone, or torn), starts again, perhaps dies once more, and in the end:

- both show exactly the tree, and hold exactly the entries, that they would have without it: no
  version came back, none was taken back, nothing was left lying beside the files;
- every content that lies on a disk without the death lies there with it, history included;
- `.shoal/tmp` is empty.

People do not wait for a dead device: in some runs Anna goes on before it is back, in others Ben
edits the file that was about to be replaced. Then what they did stands as well.

`make test-crashes` dies twice at every pair of operations, in all ways.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest

from crdt.version_vector import VersionVector
from node.files.layout import STORE
from tests.support.crashes import MEMORY_SIZE_MAX, PATCH_SIZE_MIN, Mortal, mortals, twins
from tests.support.two_folders import exchange

LONG = os.environ.get("SHOAL_CRASHES") == "all"
SMALL, BLOCKS, LARGE = 100, 30_000, 2 * MEMORY_SIZE_MAX  # inline; in memory; in a file
HUGE = 2 * PATCH_SIZE_MIN  # changed in place
CUTS = 4  # for each operation, where what survives is chance
SECOND_DEATHS = 4  # at random, of each case
ROUNDS_MAX = 4

Act = Callable[[Mortal, int], None]
Aftermath = Callable[[Mortal, Mortal], Awaitable[None]]


def content(name: str, size: int) -> bytes:
    return random.Random(f"{name} {size}").randbytes(size)


def save(path: str, name: str) -> Act:
    """As programs do: a new file, renamed over the old one, and no fsync."""

    def act(box: Mortal, size: int) -> None:
        box.fs.write_file("saving", content(name, size))
        box.fs.replace("saving", path)

    return act


def change_a_little(box: Mortal, size: int) -> None:
    data = bytearray(box.fs.read_file("f"))
    for place in (size // 2, size - 4):
        data[place : place + 4] = b"edit"
    box.fs.write_file("saving", bytes(data))
    box.fs.replace("saving", "f")


def append(box: Mortal, _size: int) -> None:
    box.fs.write_file("saving", box.fs.read_file("f") + b"more" * 1000)
    box.fs.replace("saving", "f")


def cut_off(box: Mortal, size: int) -> None:
    box.fs.write_file("saving", box.fs.read_file("f")[: size - 50_000])
    box.fs.replace("saving", "f")


def nothing(_box: Mortal, _size: int) -> None:
    pass


def rename(box: Mortal, _size: int) -> None:
    box.fs.rename("f", "g")


def delete(box: Mortal, _size: int) -> None:
    box.fs.unlink("f")


@dataclass(frozen=True)
class Scenario:
    name: str
    before: Act  # what Anna has, and Ben too
    anna: Act  # what Anna does then
    ben: Act = nothing  # what Ben does at the same time
    exchanges: bool = True  # what the disks can
    clones: bool = False


SCENARIOS = [
    Scenario("new file", nothing, save("f", "new")),
    Scenario("edit", save("f", "old"), save("f", "new")),
    Scenario("rename", save("f", "old"), rename),
    Scenario("delete", save("f", "old"), delete),
    Scenario("conflict", save("f", "old"), save("f", "new"), save("f", "mine")),
    Scenario("edit in two steps", save("f", "old"), save("f", "new"), exchanges=False),
]


IN_PLACE = [
    Scenario("change a little", save("f", "old"), change_a_little),
    Scenario("append", save("f", "old"), append),
    Scenario("cut off", save("f", "old"), cut_off),
    Scenario("change a clone", save("f", "old"), change_a_little, clones=True),
]


@dataclass(frozen=True)
class Death:
    at: int  # the operation, counted from 1
    cut: int | None = None  # the seed of a power cut; None: killed


@dataclass(frozen=True)
class Outcome:
    tree: dict[str, object]
    have: VersionVector
    kept: set[bytes]  # on any disk


class Case:
    """One device, about to live, in one scenario."""

    def __init__(self, anna: Mortal, ben: Mortal, dying: str) -> None:
        self._boxes = (anna, ben)
        self._dying = dying

    @classmethod
    async def prepare(cls, scenario: Scenario, size: int, dying: str) -> Case:
        anna, ben = mortals(2, exchanges=scenario.exchanges, clones=scenario.clones)
        scenario.before(anna, size)
        for box in (anna, ben, anna):
            assert await box.live()
        scenario.anna(anna, size)
        scenario.ben(ben, size)
        if dying == "ben":
            assert await anna.live()
        for box in (anna, ben):
            box.fs.sync()
        return cls(anna, ben, dying)

    async def operations(self) -> int:
        """How many the device does in an undisturbed life."""
        _, dying, _ = self._start()
        assert await dying.live()
        return dying.plan.operations

    async def run(
        self, deaths: tuple[Death, ...] = (), aftermath: Aftermath | None = None
    ) -> Outcome:
        """Let the device live, and die, until all is the same everywhere."""
        (anna, ben), dying, other = self._start()
        for death in deaths:
            if await dying.live(until=death.at):
                break
            if death.cut is not None:
                dying.lose_power(death.cut)
        if aftermath is not None:
            await aftermath(anna, ben)
        return await settle(dying, other)

    def _start(self) -> tuple[tuple[Mortal, Mortal], Mortal, Mortal]:
        anna, ben = twins(self._boxes)
        dying, other = (anna, ben) if self._dying == "anna" else (ben, anna)
        return (anna, ben), dying, other


async def settle(*boxes: Mortal) -> Outcome:
    """Everybody lives until all is the same everywhere. The device that died goes first: nobody
    gets blocks from a dead one.
    """
    for _ in range(ROUNDS_MAX):
        for box in boxes:
            assert await box.live(), "nothing kills it"
        exchange(*boxes)
        if not any(box.folder.pending for box in boxes):
            break
    trees = [box.tree() for box in boxes]
    assert all(tree == trees[0] for tree in trees), "the devices differ"
    for box in boxes:
        assert not box.contents(below=".shoal/tmp/"), "something was left in .shoal/tmp"
    kept: set[bytes] = set().union(*(box.contents() for box in boxes))
    return Outcome(trees[0], boxes[0].folder.have, kept)


CASES = [
    pytest.param(scenario, size, dying, id=f"{scenario.name}, {size}, {dying} dies")
    for scenario in SCENARIOS
    for size in (SMALL, BLOCKS, LARGE)
    for dying in ("ben", "anna")
    # A move moves any size alike, and so reads a scan.
    if LONG or size == BLOCKS or (dying == "ben" and scenario.name not in {"rename", "delete"})
] + [pytest.param(scenario, HUGE, "ben", id=f"huge: {scenario.name}") for scenario in IN_PLACE]


def deaths(operations: int, size: int) -> Iterator[tuple[Death, ...]]:
    chance = random.Random(operations)
    for at in range(1, operations + 1):
        both = LONG or size < LARGE
        if both or at % 2:
            yield (Death(at),)
        if both or not at % 2:
            yield (Death(at, cut=at),)
    again = range(1, operations + 10)  # recovery has operations of its own
    if LONG:
        pairs = [(first, second) for first in range(1, operations + 1) for second in again]
    else:
        pairs = [
            (chance.randint(1, operations), chance.choice(again)) for _ in range(SECOND_DEATHS)
        ]
    for first, second in pairs:
        cut = chance.choice((first, None)), chance.choice((second, None))
        yield Death(first, cut[0]), Death(second, cut[1])


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "size", "dying"), CASES)
async def test_dying_changes_nothing(scenario: Scenario, size: int, dying: str) -> None:
    case = await Case.prepare(scenario, size, dying)
    undisturbed = await case.run()
    for died in deaths(await case.operations(), size):
        outcome = await case.run(died)
        assert outcome.tree == undisturbed.tree, died
        assert outcome.have == undisturbed.have, died
        if scenario.clones and any(name.startswith(STORE.encode()) for name in outcome.kept):
            continue  # a half made clone was of no use: changed in place, and kept in blocks
        assert outcome.kept >= undisturbed.kept, died


async def anna_saves_again(anna: Mortal, _ben: Mortal) -> None:
    save("f", "newer")(anna, BLOCKS)
    assert await anna.live()


async def anna_deletes(anna: Mortal, _ben: Mortal) -> None:
    for path in list(anna.tree()):
        anna.fs.unlink(path)
    assert await anna.live()


async def anna_moves(anna: Mortal, _ben: Mortal) -> None:
    for path in list(anna.tree()):
        anna.fs.rename(path, f"moved {path}")
    assert await anna.live()


@pytest.mark.slow
@pytest.mark.parametrize("aftermath", [anna_saves_again, anna_deletes, anna_moves])
@pytest.mark.parametrize(
    ("scenario", "size"),
    [
        (scenario, size)
        for scenario in SCENARIOS[:4]
        for size in (SMALL, BLOCKS, LARGE)
        if LONG or (size == LARGE) == (scenario.name in {"new file", "edit"})
        if LONG or size != SMALL
    ],
    ids=lambda one: one.name if isinstance(one, Scenario) else str(one),
)
async def test_the_world_goes_on_before_it_is_back(
    scenario: Scenario, size: int, aftermath: Aftermath
) -> None:
    case = await Case.prepare(scenario, size, "ben")
    undisturbed = await case.run((Death(1),), aftermath)
    for at in range(1, await case.operations() + 1):
        died = Death(at, cut=None if at % 2 else at)
        outcome = await case.run((died,), aftermath)
        assert outcome.tree == undisturbed.tree, died
        assert outcome.have == undisturbed.have, died


@pytest.mark.slow
@pytest.mark.parametrize("size", [SMALL, BLOCKS, LARGE] if LONG else [BLOCKS])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
async def test_a_person_edits_before_it_is_back(scenario: Scenario, size: int) -> None:
    typed = content("typed", SMALL)
    wanted: set[bytes] = set()  # what a person replaces is that person's to replace

    async def ben_edits(anna: Mortal, ben: Mortal) -> None:
        wanted.clear()
        wanted.update(anna.contents())
        for path in list(ben.tree()):
            save(path, "typed")(ben, SMALL)
            wanted.add(typed)

    case = await Case.prepare(scenario, size, "ben")
    for at in range(1, await case.operations() + 1):
        died = Death(at, cut=None if at % 2 else at)
        outcome = await case.run((died,), ben_edits)
        assert outcome.kept >= wanted, died
        assert typed not in wanted or typed in outcome.tree.values(), died


@pytest.mark.slow
@pytest.mark.parametrize("size", [SMALL, BLOCKS, LARGE] if LONG else [BLOCKS])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
async def test_what_was_published_stays_though_nobody_synced_it(
    scenario: Scenario, size: int
) -> None:
    # Programs save without fsync. After a power cut such a save is gone or torn, as everywhere; but
    # not once other devices were told of it: then that would look like an edit, or a deletion.
    start = mortals(2)
    scenario.before(start[0], size)
    for box in (*start, start[0]):
        assert await box.live()

    async def run(at: int | None, cut: int) -> tuple[bool, dict[str, object]]:
        anna, ben = twins(start)
        before = anna.folder.have
        if not await anna.live(until=at, saves=lambda: scenario.anna(anna, size)):
            anna.lose_power(cut)
        anna.open(anna.folder.id, anna.folder.roster_entries)
        published = anna.folder.have != before
        return published, (await settle(anna, ben)).tree

    _, undisturbed = await run(None, 0)
    at, lives = 0, 0
    while lives < 2 * CUTS:
        at += 1
        for cut in range(at, at + CUTS):
            published, tree = await run(at, cut)
            assert not published or tree == undisturbed, (at, cut)
            lives += published
