"""What entries do in the tree while rosters and keys come and go; folders without a network."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from crdt.entry import EntryKind, build, seal_writes
from crdt.ids import DeviceId, ItemId
from crdt.roster_make import epoch_op, removal_ops, set_role_ops
from crdt.roster_ops import Op, Role
from crdt.slot import Placement, Slot
from node.index.log import Why
from node.sync.effects import settle_effects
from node.sync.keys import tend_keys
from tests.support.two_folders import Box, boxes, exchange


def do(box: Box, ops: Iterable[Op]) -> None:
    box.folder.commit_roster(ops)
    settle_effects(box.folder)


def remove(owner: Box, other: Box) -> None:
    device = other.identity.device
    ops = removal_ops(
        owner.folder.roster,
        owner.folder.keys,
        device,
        position=owner.folder.log.position(device),
        epoch_secret=owner.random.bytes(32),
        seed=owner.random.bytes(32),
        now_s=0,
    )
    do(owner, ops)


def set_role(owner: Box, other: Box, role: Role) -> None:
    device = other.identity.device
    ops = set_role_ops(
        owner.folder.roster,
        owner.folder.keys,
        device,
        role=role,
        may_invite=False,
        position=owner.folder.log.position(device),
        epoch_secret=owner.random.bytes(32),
        seed=owner.random.bytes(32),
        now_s=0,
    )
    do(owner, ops)


async def save(box: Box, path: str, data: bytes) -> None:
    box.fs.write_file(path, data)
    await box.settle()


async def test_keys_that_are_in_order_are_left_alone() -> None:
    a, _ = boxes(2)
    assert not tend_keys(a.folder, ())


async def test_what_a_removed_device_wrote_before_stays() -> None:
    a, b, c = boxes(3)
    await save(c, "by c", b"before")
    exchange(a, b, c)
    remove(a, c)
    await a.settle()
    assert a.tree() == {"by c": b"before"}
    exchange(a, b)
    await b.settle()
    assert b.tree() == {"by c": b"before"}


async def test_what_it_writes_after_can_be_read_by_nobody_but_members() -> None:
    a, b, c = boxes(3)
    exchange(a, b, c)
    remove(a, c)
    await save(a, "secret", b"not for c")
    exchange(a, b)
    await b.settle()
    assert b.tree() == {"secret": b"not for c"}
    c.take_from(a)  # a hostile relay gives it everything
    await c.apply()
    assert c.tree() == {}
    ((author, _, why),) = c.folder.log.without_effect()
    assert (author, why) == (a.identity.device, Why.NO_KEY)


async def test_late_entries_that_were_applied_are_taken_back() -> None:
    a, b, c = boxes(3)
    await save(c, "kept", b"one")
    exchange(a, b, c)
    await b.settle()
    remove(a, c)
    # In another partition, b goes on hearing c.
    await save(c, "kept", b"two")
    await save(c, "late", b"late")
    exchange(b, c)
    await b.settle()
    assert b.tree() == {"kept": b"two", "late": b"late"}
    exchange(a, b)
    for box in (a, b):
        await box.settle()
        assert box.tree() == {"kept": b"one"}
    assert a.folder.have == b.folder.have, "the logs are the same, the late entries in them"
    assert b"late" in b.displaced()
    assert b"two" in b.displaced()


async def test_an_edit_that_saw_a_late_one_stays() -> None:
    a, b, c = boxes(3)
    await save(c, "f", b"one")
    exchange(a, b, c)
    await b.settle()
    remove(a, c)
    await save(c, "f", b"two, late")
    exchange(b, c)
    await b.settle()
    await save(b, "f", b"three, by a member")
    exchange(a, b)
    for box in (a, b):
        await box.settle()
        assert box.tree() == {"f": b"three, by a member"}


async def test_a_second_removal_that_had_seen_more_brings_entries_back() -> None:
    a, b, c = boxes(3)
    set_role(a, b, Role.OWNER)
    exchange(a, b, c)
    await save(c, "f", b"late for a, not for b")
    exchange(b, c)
    remove(a, c)
    remove(b, c)
    await b.settle()
    a.take_from(b)
    assert a.folder.log.without_effect() == []
    await a.settle()
    exchange(a, b)
    await b.settle()
    assert a.tree() == b.tree() == {"f": b"late for a, not for b"}


async def test_a_device_that_hears_of_its_removal_keeps_its_files() -> None:
    a, b, c = boxes(3)
    await save(c, "f", b"one")
    exchange(a, b, c)
    remove(a, c)
    await save(c, "g", b"late")
    c.take_from(a)
    await c.apply()
    assert c.tree() == {"f": b"one", "g": b"late"}
    b.take_from(a)
    await b.settle()
    assert b.tree() == {"f": b"one"}


async def test_owners_that_remove_each_other_at_once_agree_on_who_stays() -> None:
    a, b, c = boxes(3)
    set_role(a, b, Role.OWNER)
    exchange(a, b, c)
    remove(a, b)
    remove(b, a)
    c.take_from(a)
    c.take_from(b)
    exchange(a, b, c)
    members = {frozenset(box.folder.roster.members) for box in (a, b, c)}
    assert len(members) == 1
    (owners,) = members
    assert len(owners & {a.identity.device, b.identity.device}) == 1


async def test_after_removals_at_once_an_epoch_is_begun_that_excludes_both() -> None:
    a, b, c, d = boxes(4)
    set_role(a, b, Role.OWNER)
    exchange(a, b, c, d)
    remove(a, c)
    remove(b, d)
    exchange(a, b)
    assert a.folder.keys.current is None
    assert tend_keys(a.folder, [b.identity.device])
    settle_effects(a.folder)
    exchange(a, b)
    assert not tend_keys(b.folder, [a.identity.device])
    await save(a, "f", b"new")
    exchange(a, b)
    await b.settle()
    assert b.tree() == {"f": b"new"}
    for removed in (c, d):
        removed.folder.reload_roster()
        removed.take_from(a)
        await removed.apply()
        assert removed.tree() == {}


async def test_an_entry_whose_key_comes_later_is_opened_then() -> None:
    a, b, c = boxes(3)
    exchange(a, b, c)
    # `a` begins an epoch without knowing c's key ... as if c had come in at the same time.
    c_key = c.identity.device
    op = epoch_op(
        a.folder.roster,
        a.folder.keys,
        secret=a.random.bytes(32),
        seed=a.random.bytes(32),
        now_s=0,
        without=[c_key],
    )
    do(a, [op])
    await save(a, "f", b"under the new key")
    exchange(a, b, c)
    await c.apply()
    assert c.tree() == {}
    assert [why for _, _, why in c.folder.log.without_effect()] == [Why.NO_KEY]
    wrote = [tend_keys(box.folder, [a.identity.device, b.identity.device]) for box in (a, b)]
    assert sorted(wrote) == [False, True], "one of them is enough"
    exchange(a, b, c)
    await c.settle()
    assert c.tree() == {"f": b"under the new key"}
    assert c.folder.log.without_effect() == []


async def test_a_malformed_body_is_its_authors_fault_and_has_no_effect() -> None:
    a, b, c = boxes(3)
    exchange(a, b, c)
    folder = c.folder
    keys, device = folder.keys, c.identity.device
    assert keys.current is not None
    item, position = ItemId(b"\x05" * 16), folder.log.position(c.identity.device)
    slot = Slot(position.seq + 1, (Placement(2**40, ItemId(bytes(16)), "from the future"),))
    body = seal_writes(
        [(item, slot)], keys.epoch(keys.current), bytes(24), device=device, seq=position.seq + 1
    )
    entry = build(
        c.identity.seed,
        folder=folder.id,
        after=position,
        deps=folder.have,
        lamport=folder.log.lamport + 1,
        kind=EntryKind.TREE,
        body=body,
        epoch=keys.current,
    )
    received = b.intake.receive([entry.to_bytes()])
    assert received.accepted == 1
    assert "malformed" in received.warnings[0]
    assert "box 3" in received.warnings[0]
    a.take_from(b)  # who forwards it is not to blame
    assert a.folder.log.without_effect() == [(device, position.seq + 1, Why.MALFORMED)]
    settle_effects(a.folder)
    await save(b, "f", b"goes on")
    exchange(a, b)
    await a.settle()
    assert a.tree() == {"f": b"goes on"}


# --- roles ----------------------------------------------------------------------------------------


async def test_what_a_lowered_device_wrote_unaware_becomes_its_local_change() -> None:
    a, b = boxes(2)
    await save(b, "f", b"one")
    exchange(a, b)
    await a.settle()
    set_role(a, b, Role.READER)
    await save(b, "f", b"two")
    await save(b, "g", b"new")
    exchange(a, b)
    await a.settle()
    assert a.tree() == {"f": b"one"}
    have = b.folder.have
    report = await b.scan()
    await b.apply()
    assert b.tree() == {"f": b"two", "g": b"new"}
    actions = {path: change.action for path, change in report.local.items()}
    assert actions == {"f": "edited", "g": "created"}
    assert b.folder.have == have, "nothing is written"


async def test_a_device_that_may_write_again_counts_from_there_on() -> None:
    a, b, c = boxes(3)
    exchange(a, b, c)
    set_role(a, b, Role.READER)
    await save(b, "unaware", b"1")
    exchange(a, b, c)
    await a.settle()
    set_role(a, b, Role.EDITOR)
    exchange(a, b, c)
    await b.settle()
    await save(b, "after", b"2")
    exchange(a, b, c)
    await c.settle()
    assert c.tree() == {"after": b"2", "unaware": b"1"}, "its local change is written now"


@pytest.mark.parametrize("count", [2, 3])
async def test_roles_converge_in_any_order(count: int) -> None:
    made = boxes(count + 1)
    a, rest = made[0], made[1:]
    for box in rest:
        set_role(a, box, Role.OWNER)
    exchange(*made)
    for box in made:  # everybody makes the next one a reader, at once
        following: Box = made[(made.index(box) + 1) % len(made)]
        set_role(box, following, Role.READER)
    exchange(*made)
    roles = {
        tuple(sorted((device, m.role) for device, m in box.folder.roster.members.items()))
        for box in made
    }
    assert len(roles) == 1
    held: dict[DeviceId, Role] = dict(next(iter(roles)))
    assert Role.OWNER in held.values(), "no folder loses its last owner to a race"
