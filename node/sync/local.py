"""What was changed on a disk that may only read the folder: it stays there, and never leaves.

A reader's scans find its changes again and again, since nothing records them; so this is kept in
memory, anew after each full scan. `Scan` names them, the engine shows them, and `shoal revert`
throws them away: it makes the disk rows say what lies there, and the applier makes it what the view
wants, as ever by way of history.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from crdt.ids import ItemId
from node.files.port import join
from node.sync.folder import Folder
from node.sync.observed import Created, Deleted, Edited, Moved, Observed, Touched

Action = Literal["created", "edited", "moved", "deleted"]


@dataclass(frozen=True, slots=True)
class LocalChange:
    """One change that stays here. `path` is where it shows; `was` where what moved lay before."""

    path: str
    action: Action
    was: str | None = None


def local_change(folder: Folder, seen: Observed, at: Mapping[ItemId, str]) -> LocalChange:
    """What an observation that is not written means; `at` says where directories were walked."""
    match seen:
        case Created():
            return LocalChange(join(at[seen.parent], seen.name), "created")
        case Edited():
            return LocalChange(_path_of(folder, seen.row.item, seen.row.name), "edited")
        case Deleted():
            return LocalChange(_path_of(folder, seen.row.item, seen.row.name), "deleted")
        case Moved():
            was = _path_of(folder, seen.row.item, seen.row.name)
            return LocalChange(join(at[seen.parent], seen.name), "moved", was)
        case Touched():
            raise AssertionError("there is nothing to write about a touch")


def _path_of(folder: Folder, item: ItemId, name: str) -> str:
    return folder.disk.path(item) or name


class LocalChanges(dict[str, LocalChange]):
    """All of them, by path. `reverting` is where they are being thrown away, None for nowhere."""

    reverting: str | None = None

    def reverts(self, path: str) -> bool:
        """True for a path whose change is being thrown away."""
        top = self.reverting
        return top is not None and (not top or path == top or path.startswith(f"{top}/"))

    def took(
        self, found: Mapping[str, LocalChange], *, full: bool, looked: Iterable[str]
    ) -> set[str]:
        """A scan of everything, or at the paths `looked`, found these.

        Returns: paths that were known, lay below those and were not found: perhaps not looked at.
        """
        if full:
            self.clear()
            self.update(found)
            return set()
        lost = {
            known
            for path in looked
            for known in self
            if known == path or known.startswith(f"{path}/") or self[known].was == path
        }
        for known in lost:
            del self[known]
        self.update(found)
        return {known for known in lost - self.keys() if known not in looked}
