"""Which of an item's versions were made from which. Pure.

Nothing of it is stored: it follows from all contents that the slots of the item hold and held. A
device that has forgotten some of them finds no ancestor, and then nothing is merged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from crdt.slot import Content
from crdt.version_vector import VersionVector

VERSIONS_MAX: Final = 5_000  # of one item; nobody looks through more of them


class Lineage:
    """The versions of one item."""

    def __init__(self, contents: Iterable[Content]) -> None:
        """Args: `contents` are all that the item's slots hold and held."""
        self._contents = {content.version: content for content in contents}
        if len(self._contents) > VERSIONS_MAX:
            self._contents = {}

    def ancestor(self, versions: Iterable[VersionVector]) -> Content | None:
        """The newest content that all of these were made from; None if it is not one alone."""
        below = set(versions)
        newest = maximal(
            content
            for version, content in self._contents.items()
            if version not in below and all(one.dominates(version) for one in below)
        )
        return newest[0] if len({content.digest for content in newest}) == 1 else None

    def parents(self, version: VersionVector) -> list[Content]:
        """The newest contents that a version had seen: more than one if it ended a conflict."""
        return maximal(
            content
            for known, content in self._contents.items()
            if known != version and version.dominates(known)
        )


def maximal(contents: Iterable[Content]) -> list[Content]:
    """Those of the contents that no other one of them has seen; equal versions count once."""
    newest: list[Content] = []
    for content in contents:
        if any(other.version.dominates(content.version) for other in newest):
            continue
        newest = [one for one in newest if not content.version.dominates(one.version)]
        newest.append(content)
    return newest
