"""The retention policy, as the pure function it is."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from crdt.ids import ItemId
from node.history.policy import DAY_S, Kept, Policy, drop_order, expired

NOW_S = 1000 * DAY_S
GB = 1000**3
ROOMY = 10**12
ITEMS = [ItemId(bytes([n]) * 16) for n in range(1, 4)]


def days_old(*ages: float, item: ItemId = ITEMS[0], size: int = 1) -> list[Kept]:
    """Versions replaced so many days ago, named by their place in the list."""
    return [Kept(number, item, int(NOW_S - age * DAY_S), size) for number, age in enumerate(ages)]


def gone(kept: list[Kept], limit: int = ROOMY, policy: Policy | None = None) -> set[int]:
    return expired(kept, policy or Policy(), now_s=NOW_S, limit=limit)


def test_everything_stays_for_thirty_days() -> None:
    assert gone(days_old(0, 0.1, 0.2, 29.9, 29.95)) == set()


def test_then_one_a_day_stays_the_newest() -> None:
    # Days are those of the clock: 40.1 and 40.9 days ago are one of them, 41.1 the one before.
    assert gone(days_old(40.1, 40.5, 40.9, 41.1)) == {1, 2}


def test_after_a_year_nothing_stays() -> None:
    assert gone(days_old(364, 366, 5000)) == {1, 2}


def test_each_item_has_days_of_its_own() -> None:
    one = days_old(40.1, item=ITEMS[0])
    other = [replace(days_old(40.2, item=ITEMS[1])[0], id=9)]
    assert gone(one + other) == set()


def test_the_oldest_go_for_want_of_room_and_no_more_than_needed() -> None:
    assert gone(days_old(1, 2, 3, size=10), limit=20) == {2}
    assert gone(days_old(1, 2, 3, size=10), limit=19) == {1, 2}
    assert gone(days_old(1, 2, 3, size=10), limit=0) == {0, 1, 2}


def test_the_newest_version_of_a_deleted_item_goes_last() -> None:
    deleted = Kept(7, ITEMS[1], NOW_S - 29 * DAY_S, 10, last=True)
    assert gone([deleted, *days_old(1, 2, size=10)], limit=10) == {0, 1}
    assert gone([deleted, *days_old(1, 2, size=10)], limit=9) == {0, 1, 7}


def test_what_is_pinned_stays() -> None:
    pinned = replace(days_old(5000, size=10)[0], pinned=True)
    assert gone([pinned], limit=0) == set()


def test_the_limit_is_the_larger_of_share_and_size() -> None:
    assert Policy().limit(GB) == 10 * GB
    assert Policy().limit(100 * GB) == 20 * GB
    assert Policy(size=0).limit(100) == 20


kept_versions = st.lists(
    st.builds(
        Kept,
        id=st.just(0),
        item=st.sampled_from(ITEMS),
        since_s=st.integers(NOW_S - 500 * DAY_S, NOW_S),
        size=st.integers(0, 100),
        last=st.booleans(),
        pinned=st.booleans(),
    ),
    max_size=40,
).map(lambda found: [replace(one, id=number) for number, one in enumerate(found)])
policies = st.builds(Policy, all_s=st.integers(0, 60 * DAY_S), daily_s=st.integers(0, 400 * DAY_S))


@given(kept_versions, policies, st.integers(0, 3000))
def test_no_more_goes_than_must(kept: list[Kept], policy: Policy, limit: int) -> None:
    went = gone(kept, limit, policy)
    by_age = gone(kept, ROOMY, policy)
    left = [one for one in kept if one.id not in went]
    assert by_age <= went
    assert not any(one.pinned for one in kept if one.id in went)
    for one in kept:
        age_s = NOW_S - one.since_s
        if one.id in by_age:
            assert age_s > policy.all_s, "all stay for a time"
    total = sum(one.size for one in left)
    assert total <= limit or all(one.pinned for one in left)
    for_room = [one for one in drop_order(kept) if one.id in went - by_age]
    if for_room:
        assert total + for_room[-1].size > limit, "the last to go had to"
        if for_room[-1].last:
            assert all(one.last or one.pinned for one in left)


@given(kept_versions, policies)
def test_each_day_of_the_year_keeps_its_newest(kept: list[Kept], policy: Policy) -> None:
    went = gone(kept, ROOMY, policy)
    for one in kept:
        age_s = NOW_S - one.since_s
        if policy.all_s < age_s <= policy.daily_s and not one.pinned:
            newer = [
                other
                for other in kept
                if other.item == one.item
                and other.since_s // DAY_S == one.since_s // DAY_S
                and (other.since_s, other.id) > (one.since_s, one.id)
                and NOW_S - other.since_s > policy.all_s
            ]
            assert (one.id in went) == bool(newer)


@given(kept_versions, policies, st.integers(0, 3000))
def test_asking_twice_drops_nothing_more(kept: list[Kept], policy: Policy, limit: int) -> None:
    went = gone(kept, limit, policy)
    assert gone([one for one in kept if one.id not in went], limit, policy) == set()
