"""The short form of `make test-plans`, and that it can find anything."""

from __future__ import annotations

import os
from dataclasses import replace
from random import Random

import pytest

from crdt.tree import ViewRow
from node.index.disk_rows import DiskRow
from node.sync.planner import Plan, plan_item
from tests.plans import model
from tests.plans.model import history, triple

SEED = int(os.environ.get("SHOAL_PLANS_SEED", "1"))
TRIPLES, HISTORIES = 4_000, 150


@pytest.mark.slow
def test_what_is_planned_for_one_item_is_what_it_needs() -> None:
    for number in range(TRIPLES):
        triple(Random(f"{SEED}:{number}"))


@pytest.mark.slow
def test_disks_that_follow_their_views_show_the_same() -> None:
    planned = sum(history(Random(f"{SEED}:{number}")) for number in range(HISTORIES))
    assert planned > HISTORIES


@pytest.mark.slow
@pytest.mark.parametrize("forget", ["remove", "relocate", "content", "metadata", "create"], ids=str)
def test_a_planner_that_forgets_something_is_found(
    monkeypatch: pytest.MonkeyPatch, forget: str
) -> None:
    def forgetful(wanted: ViewRow | None, agreed: DiskRow | None, name: str | None = None) -> Plan:
        return replace(plan_item(wanted, agreed, name), **{forget: False})

    monkeypatch.setattr(model, "plan_item", forgetful)
    with pytest.raises(AssertionError):
        test_what_is_planned_for_one_item_is_what_it_needs()


def test_a_disk_that_is_not_looked_at_first_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "still_as_agreed", lambda _stat, _row: True)
    with pytest.raises(AssertionError, match="not looked at"):
        test_what_is_planned_for_one_item_is_what_it_needs()
