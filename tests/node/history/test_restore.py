"""Restoring, on in-memory disks: what comes back, what is refused, and that nothing is lost."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from crdt.ids import BlockId
from crdt.roster_ops import Role
from crdt.slot import BlockRef
from node.files.faulty import Crash, Fault, FaultPlan, FaultyFileSystem
from node.history import restore as restore_module
from node.history.policy import Policy
from node.history.restore import NotAvailableError, Restored, RestoreError, Restorer
from node.history.versions import Versions
from node.sync.bell import Bell
from node.sync.recovery import recover
from tests.support.two_folders import Box, InlineThreads, boxes, exchange

LARGE = random.Random(3).randbytes(300_000)


class BoxExchange:
    """What a block exchange does, over boxes that see each other directly."""

    def __init__(self, box: Box) -> None:
        self._box = box

    def has(self, block: BlockId) -> bool:
        return has(self._box, block)

    async def lacking(self, blocks: Sequence[BlockId]) -> set[BlockId]:
        return {one for one in blocks if not any(has(box, one) for box in self._box.others)}

    async def block(
        self, ref: BlockRef, *, transfer_size: int, like: BlockRef | None = None
    ) -> bytes:
        return await self._box.block(ref, transfer_size=transfer_size)

    async def node(self, ref: BlockRef, *, like: BlockRef | None = None) -> bytes:
        return await self._box.node(ref)


def has(box: Box, block: BlockId) -> bool:
    locations = box.folder.locations
    return bool(box.sealed.has(block) or locations.find(block) or locations.node(block) is not None)


def restorer(box: Box, **changes: Any) -> Restorer:
    """A restorer over a box that looks like a running engine; it does not wait for the disk."""
    engine = SimpleNamespace(
        folder=box.folder,
        fs=box.fs,
        threads=InlineThreads(),
        blocks=BoxExchange(box),
        sealed=box.sealed,
        history=box.history,
        scans=SimpleNamespace(first_done=True),
        stopped=None,
        paused=False,
        changed=Bell(),
        allowed=lambda: True,
        ignored=lambda path, _: path.startswith("ignored"),
    )
    for name, value in changes.items():
        setattr(engine, name, value)
    return Restorer(engine)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes apply when they are told to, so there is nothing to wait for."""
    monkeypatch.setattr(restore_module, "PLACE_TIMEOUT_S", 0)


async def restore(
    box: Box,
    path: str,
    version: str | None = None,
    *,
    at_ms: int | None = None,
    to: str | None = None,
    **changes: Any,
) -> Restored:
    """Restore, and let the applier do its part."""
    done = await restorer(box, **changes).restore(path, version=version, at_ms=at_ms, to=to)
    await box.settle()
    return done


async def settle(*members: Box) -> int:
    for _ in range(4):
        for box in members:
            await box.settle(all_blocks=False)
        exchange(*members)
    now_ms = members[0].clock.wall_ns() // 1_000_000
    members[0].clock.now_ns += 10**9
    return now_ms


async def write(a: Box, b: Box, path: str, *contents: bytes) -> list[int]:
    times = []
    for content in contents:
        a.fs.write_file(path, content)
        times.append(await settle(a, b))
    return times


def ids(box: Box, path: str) -> list[str]:
    return [one.id for one in Versions(box.folder).of_path(path)]


# --- what comes back ------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [b"", LARGE], ids=["small", "large"])
async def test_a_version_comes_back_everywhere_and_can_be_undone(pad: bytes) -> None:
    a, b = boxes(2)
    await write(a, b, "f", *(pad + text for text in (b"one", b"two", b"three")))
    before = ids(b, "f")
    done = await restore(b, "f", before[-1])
    assert done.paths == ("f",)
    await settle(a, b)
    assert a.tree() == b.tree() == {"f": pad + b"one"}
    after = ids(a, "f")
    assert after[1:] == before, "a restore is a new version"
    await restore(a, "f", before[0])
    await settle(a, b)
    assert a.tree() == b.tree() == {"f": pad + b"three"}


async def test_without_a_version_the_one_before_comes_back() -> None:
    a, b = boxes(2)
    await write(a, b, "f", b"one", b"two")
    await restore(a, "f")
    await settle(a, b)
    assert b.tree() == {"f": b"one"}


@pytest.mark.parametrize("content", [b"small", LARGE], ids=["small", "large"])
async def test_a_deleted_file_comes_back_on_the_device_that_deleted_it(content: bytes) -> None:
    a, b = boxes(2)
    await write(a, b, "f", content)
    a.fs.unlink("f")
    await settle(a, b)
    await restore(a, "f")
    await settle(a, b)
    assert a.tree() == b.tree() == {"f": content}
    assert not Versions(a.folder).deleted_below("")


async def test_the_version_of_a_deletion_brings_back_what_it_deleted() -> None:
    a, b = boxes(2)
    await write(a, b, "f", b"one", b"two")
    b.fs.unlink("f")
    await settle(a, b)
    await restore(a, "f", ids(a, "f")[0])
    await settle(a, b)
    assert b.tree() == {"f": b"two"}


async def test_a_file_whose_directory_is_gone_comes_back_with_it() -> None:
    a, b = boxes(2)
    a.fs.mkdir("d")
    a.fs.mkdir("d/e")
    await write(a, b, "d/e/f", LARGE)
    a.fs.unlink("d/e/f")
    a.fs.rmdir("d/e")
    a.fs.rmdir("d")
    await settle(a, b)
    assert b.tree() == {}
    await restore(b, "d/e/f")
    await settle(a, b)
    assert a.tree() == b.tree() == {"d": None, "d/e": None, "d/e/f": LARGE}


async def test_a_copy_of_a_version_beside_the_present_one() -> None:
    a, b = boxes(2)
    a.fs.mkdir("old")
    await write(a, b, "f", b"one", b"two")
    first = ids(a, "f")[-1]
    await restore(a, "f", first, to="copy")
    await restore(a, "f", first, to="old")
    await restore(a, "f", first, to="new/deep/f")
    await settle(a, b)
    assert b.tree() == {
        "f": b"two", "copy": b"one", "old": None, "old/f": b"one",
        "new": None, "new/deep": None, "new/deep/f": b"one",
    }  # fmt: skip


async def test_a_directory_as_of_a_time_comes_back_and_newer_files_stay() -> None:
    a, b = boxes(2)
    a.fs.mkdir("d")
    a.fs.mkdir("d/e")
    for name, content in (("d/edited", b"1"), ("d/e/gone", LARGE), ("d/same", b"2")):
        a.fs.write_file(name, content)
    then = await settle(a, b)
    a.fs.write_file("d/edited", b"1 edited")
    a.fs.unlink("d/e/gone")
    a.fs.rmdir("d/e")
    a.fs.write_file("d/newer", b"3")
    await settle(a, b)
    done = await restore(b, "d", at_ms=then)
    assert set(done.paths) == {"d/edited", "d/e", "d/e/gone"}
    await settle(a, b)
    back = {"d": None, "d/e": None, "d/e/gone": LARGE, "d/edited": b"1", "d/same": b"2"}
    assert a.tree() == b.tree() == back | {"d/newer": b"3"}
    again = await restore(b, "d", at_ms=then)
    assert again.paths == (), "it is as it was then already"
    await restore(b, "", at_ms=then, to="all of it")
    await settle(a, b)
    assert {p: w for p, w in a.tree().items() if p.startswith("all of it/")} == {
        f"all of it/{path}": what for path, what in back.items()
    }


async def test_a_large_directory_takes_several_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = boxes(2)
    a.fs.mkdir("d")
    for number in range(30):
        a.fs.write_file(f"d/{number}", b"%d" % number)
    then = await settle(a, b)
    for number in range(30):
        a.fs.unlink(f"d/{number}")
    a.fs.rmdir("d")
    await settle(a, b)
    monkeypatch.setattr(restore_module, "entry_writes_max", lambda _folder: 7)
    await restore(a, "d", at_ms=then)
    await settle(a, b)
    assert len(b.tree()) == 31


async def test_what_a_restore_replaces_is_kept() -> None:
    a, b = boxes(2)
    await write(a, b, "f", LARGE, b"x" * 5000)
    (second, _) = ids(a, "f")
    await restore(a, "f")
    a.others = []
    await restore(a, "f", second)
    assert a.tree() == {"f": b"x" * 5000}


async def test_blocks_that_came_for_a_restore_outlive_its_collector() -> None:
    a, b = boxes(2)
    await write(a, b, "f", LARGE, b"second")
    assert a.folder.locations.find is not None
    a.history.policy = Policy(0, 0, 0, 0)
    work = restorer(a)
    await work.restore("f", version=None, at_ms=None, to=None)
    await a.history.tidy()
    a.others = []
    await a.settle()
    assert a.tree() == {"f": LARGE}


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture
async def pair() -> tuple[Box, Box, list[int]]:
    a, b = boxes(2)
    a.fs.mkdir("d")
    times = await write(a, b, "f", b"one", b"two")
    return a, b, times


Pair = tuple[Box, Box, list[int]]


async def refused(box: Box, match: str, path: str = "f", **how: Any) -> None:
    """The restore is refused, and nothing has changed: not the disk, not the log, not history."""
    before = box.fs.snapshot(), box.folder.have, dict(box.folder.pending)
    with pytest.raises(RestoreError, match=match) as caught:
        await restorer(box, **how.pop("changes", {})).restore(
            path, **{"version": None, "at_ms": None, "to": None, **how}
        )
    assert "Nothing was changed" in str(caught.value)
    assert (box.fs.snapshot(), box.folder.have, dict(box.folder.pending)) == before


async def test_what_makes_no_sense_is_refused(pair: Pair) -> None:
    a, _, times = pair
    await refused(a, "nothing is known", "nope")
    await refused(a, "has no version", version="AAAAAAA-1")
    await refused(a, "begins later", at_ms=times[0] - 10**6)
    await refused(a, "is a directory", "d")
    await refused(a, "is a directory", "")
    await refused(a, "nothing in 'd' then", "d", at_ms=5)
    await refused(a, "no place", to=".shoal/history/f")
    await refused(a, "no place", to="d/.SHOAL/f")
    await refused(a, "is there already", to="f")
    await refused(a, "is a file now", to="f/below")
    await refused(a, "is not synced", to="ignored/f")
    await refused(a, "cannot be a path", to="d/../f")
    await refused(a, "cannot be a path", to="n" * 300)


async def test_a_file_that_was_deleted_then_is_not_made_up(pair: Pair) -> None:
    a, b, _ = pair
    a.fs.unlink("f")
    gone = await settle(a, b)
    await write(a, b, "f", b"again")
    await refused(b, "nothing at 'f' then", at_ms=gone)


@pytest.mark.parametrize("how", ["edited", "same size and mtime", "deleted", "replaced"])
async def test_an_edit_that_is_not_synced_is_never_overwritten(pair: Pair, how: str) -> None:
    a, b, _ = pair
    mtime_ns = a.fs.lstat("f").mtime_ns
    if how == "deleted":
        a.fs.unlink("f")
    elif how == "replaced":
        a.fs.unlink("f")
        a.fs.mkdir("f")
    else:
        a.fs.write_file("f", b"owt" if how.startswith("same") else b"an edit")
    if how.startswith("same"):
        a.fs.set_metadata("f", mtime_ns=mtime_ns)
    await refused(a, "not synced yet")
    await settle(a, b)
    assert a.tree() == b.tree()


async def test_a_file_that_the_scan_has_not_seen_is_never_overwritten(pair: Pair) -> None:
    a, b, _ = pair
    a.fs.unlink("f")
    await settle(a, b)
    a.fs.write_file("f", b"new, and unseen")
    await refused(a, "not synced yet")
    a.fs.write_file("there", b"unseen too")
    await refused(a, "not synced yet", to="there")


async def test_an_edit_in_the_very_moment_becomes_a_conflict_copy(pair: Pair) -> None:
    a, b, _ = pair
    await restorer(a).restore("f", version=None, at_ms=None, to=None)
    a.fs.write_file("f", b"in the very moment")
    await settle(a, b)
    assert set(a.tree().values()) == {None, b"one", b"in the very moment"}
    assert a.tree() == b.tree()


async def test_what_is_still_being_synced_is_left_alone(pair: Pair) -> None:
    a, b, _ = pair
    b.fs.write_file("f", b"three")
    await b.settle()
    a.take_from(b)
    assert a.folder.pending
    await refused(a, "being synced")


async def test_a_folder_that_does_not_run_is_left_alone(pair: Pair) -> None:
    a, _, _ = pair
    await refused(a, "is paused", changes={"paused": True, "allowed": lambda: False})
    await refused(a, "stopped: no disk", changes={"stopped": "no disk"})
    await refused(a, "not ready", changes={"scans": SimpleNamespace(first_done=False)})


async def test_a_reader_restores_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    a, _, _ = pair
    roster = a.folder.roster
    assert roster.role(a.identity.device) is Role.OWNER
    monkeypatch.setattr(type(roster), "may_write", lambda *_: False)
    await refused(a, "may only read")


async def test_a_version_that_nobody_connected_has_is_not_promised() -> None:
    a, b = boxes(2)
    await write(a, b, "f", LARGE, b"second")
    a.others = []
    before = a.fs.snapshot(), a.folder.have
    with pytest.raises(NotAvailableError, match="no device that is connected"):
        await restorer(a).restore("f", version=None, at_ms=None, to=None)
    assert (a.fs.snapshot(), a.folder.have) == before


async def test_bytes_that_do_not_come_after_all_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restore_module, "FETCH_TIMEOUT_S", 0)
    a, b = boxes(2)
    await write(a, b, "f", LARGE, b"second")

    async def never(*_: object, **__: object) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(BoxExchange, "block", never)
    before = a.folder.have, a.tree()
    with pytest.raises(NotAvailableError, match="did not send it in time"):
        await restorer(a).restore("f", version=None, at_ms=None, to=None)
    assert (a.folder.have, a.tree()) == before


# --- dying ----------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_dying_at_any_operation_of_a_restore_leaves_the_old_or_the_new() -> None:
    nth, died, large = 0, True, LARGE[:100_000]
    while died:
        nth += 1
        a, b = boxes(2)
        await write(a, b, "f", large, b"second")
        faulty = FaultyFileSystem(a.fs, FaultPlan([Fault(None, nth=nth)]))
        sound, a.fs = a.fs, faulty  # type: ignore[assignment]
        a.sealed._store._fs = faulty
        died = False
        try:
            await restorer(a).restore("f", version=None, at_ms=None, to=None)
            await a.apply(faulty)
        except (Crash, BaseExceptionGroup):
            died = True
        a.fs = sound
        a.sealed._store._fs = sound
        assert a.tree() in ({"f": large}, {"f": b"second"}), f"operation {nth}"
        recover(a.folder, a.fs)
        await settle(a, b)
        assert a.tree() == b.tree(), f"operation {nth}"
        assert a.tree() in ({"f": large}, {"f": b"second"}), f"operation {nth}"
        assert died or a.tree() == {"f": large}
    assert nth > 15
