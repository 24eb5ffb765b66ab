"""Which kept versions go: a pure function of their ages and sizes. No I/O, no clock.

Ages are told by history's own clock (`node.history.clock`), so a wall clock that jumps by years
makes nothing old. Rules, in this order:

1. Until `all_s` after a version was replaced or deleted, it stays.
2. Then, until `daily_s`, the newest of each day of each item stays.
3. What is left and takes more than the limit goes, oldest first; the newest version of a deleted
   item only when nothing else is left to go.

What is pinned never goes: bytes that the tree still shows and that lie nowhere else here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from crdt.ids import ItemId

DAY_S: Final = 24 * 3600
KEEP_S_MAX: Final = 100 * 365 * DAY_S
SIZE_MAX: Final = 2**53


@dataclass(frozen=True, slots=True)
class Policy:
    """How much of the past a device keeps of one folder.

    `all_s` and `daily_s` are seconds since a version was replaced; the size is at most `share` of
    the folder's own, or `size` bytes, whichever is larger.
    """

    all_s: int = 30 * DAY_S
    daily_s: int = 365 * DAY_S
    share: float = 0.2
    size: int = 10 * 1000**3

    def __post_init__(self) -> None:
        if not (0 <= self.all_s <= KEEP_S_MAX and 0 <= self.daily_s <= KEEP_S_MAX):
            raise ValueError("a time to keep versions is between 0 and 100 years")
        if not 0 <= self.share <= 100:
            raise ValueError("a share of the folder's size is between 0 and 10,000 %")
        if not 0 <= self.size <= SIZE_MAX:
            raise ValueError(f"a size is between 0 and {SIZE_MAX} bytes")

    def limit(self, folder_size: int) -> int:
        """Bytes that history may take beside a folder of `folder_size` bytes."""
        return max(int(folder_size * self.share), self.size)


@dataclass(frozen=True, slots=True)
class Kept:
    """One version that is kept here. `size` is what is freed when it goes and all that go before
    it have gone; `last` marks the newest version of a deleted item.
    """

    id: int
    item: ItemId
    since_s: int
    size: int
    last: bool = False
    pinned: bool = False


def drop_order(kept: Iterable[Kept]) -> list[Kept]:
    """The order in which versions go for want of room: the newest of deleted items last."""
    return sorted(kept, key=lambda one: (one.last, one.since_s, one.id))


def expired(kept: Sequence[Kept], policy: Policy, *, now_s: int, limit: int) -> set[int]:
    """The ids of the versions to drop now.

    Args:
        kept: All versions that are kept.
        policy: The folder's.
        now_s: On the clock by which `since_s` was told.
        limit: Bytes; see `Policy.limit`.
    """
    gone = _too_old(kept, policy, now_s)
    left = [one for one in drop_order(kept) if one.id not in gone]
    total = sum(one.size for one in left)
    for one in left:
        if total <= limit:
            break
        if not one.pinned:
            gone.add(one.id)
            total -= one.size
    return gone


def _too_old(kept: Iterable[Kept], policy: Policy, now_s: int) -> set[int]:
    gone: set[int] = set()
    days: set[tuple[ItemId, int]] = set()  # those that have their newest version
    for one in sorted(kept, key=lambda one: (one.since_s, one.id), reverse=True):
        age_s = now_s - one.since_s
        if age_s <= policy.all_s:
            continue
        day = (one.item, one.since_s // DAY_S)
        if not one.pinned and (age_s > policy.daily_s or day in days):
            gone.add(one.id)
        days.add(day)
    return gone
