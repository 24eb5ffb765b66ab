"""Finds out what the heads of an item come to: follows them back, and brings the texts together.

A head that is just what its own parents merge to stands for these. So what comes out depends only
on what people wrote, not on who met whom first; and what another program merged otherwise counts
as written by a person, so it is never merged with ours again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from crdt.errors import ShoalError
from crdt.ids import ItemId
from crdt.lineage import Lineage, maximal
from crdt.merge_text import TEXT_SIZE_MAX, Head, is_prose, is_text, merge_texts
from crdt.slot import Content, Kind
from crdt.version_vector import VersionVector
from node.ports import Threads
from node.sync.assemble import Assembler
from node.sync.base_texts import BaseTexts

HEADS_MAX: Final = 8  # versions that one merge brings together
GENERATIONS_MAX: Final = 3  # merges of merges that are followed back to what people wrote


class Texts(Protocol):
    """Where the bytes of versions come from."""

    async def text(self, item: ItemId, content: Content) -> bytes | None:
        """The bytes of a file's version, None if they are not to be had."""
        ...


class AssembledTexts:
    """Texts from the cache, this disk, its history, or peers."""

    def __init__(self, assembler: Assembler, bases: BaseTexts) -> None:
        self._assembler = assembler
        self._bases = bases

    async def text(self, item: ItemId, content: Content) -> bytes | None:
        """See `Texts`."""
        kept = self._bases.get(content)
        if kept is not None:
            return kept
        try:
            return (await self._assembler.assemble(item, content)).source
        except (OSError, ShoalError):
            return None
        except ExceptionGroup as group:
            if group.split((OSError, ShoalError))[1] is not None:
                raise
            return None


@dataclass(frozen=True, slots=True)
class Merged:
    """What some versions come to, and those by people that went into it, oldest first."""

    data: bytes
    executable: bool
    sources: Sequence[Content]


class Inquiry:
    """About one item, at one moment."""

    def __init__(
        self, item: ItemId, name: str, lineage: Lineage, texts: Texts, threads: Threads
    ) -> None:
        self._item = item
        self._prose = is_prose(name)
        self._lineage = lineage
        self._texts = texts
        self._threads = threads
        self._known: dict[VersionVector, bytes | None] = {}

    async def merge(self, heads: Sequence[Content]) -> Merged | None:
        """What the heads come to; None where people must decide, or something is not at hand."""
        sources: list[Content] = []
        for head in heads:
            sources += await self._sources(head, GENERATIONS_MAX)
        return await self._merge(sources)

    async def _sources(self, content: Content, generations: int) -> list[Content]:
        """The versions by people that a merge stands for; `content` itself if it is none."""
        parents = self._lineage.parents(content.version)
        same = len({parent.digest for parent in parents}) < 2
        if same or len(parents) > HEADS_MAX or not generations:
            return [content]
        below: list[Content] = []
        for parent in parents:
            below += await self._sources(parent, generations - 1)
        merged = await self._merge(below)
        if merged is None or merged.data != await self._text(content):
            return [content]
        return below

    async def _merge(self, contents: Sequence[Content]) -> Merged | None:
        newest = sorted(maximal(contents), key=_order)
        if len(newest) == 1:
            data = await self._text(newest[0])
            return None if data is None else Merged(data, newest[0].executable, newest)
        ancestor = self._lineage.ancestor(content.version for content in newest)
        if ancestor is None or len(newest) > HEADS_MAX:
            return None
        heads: list[Head] = []
        for content in newest:
            data = await self._text(content)
            if data is None or not is_text(data):
                return None
            heads.append(Head(content.version, data))
        base = await self._text(ancestor)
        if base is None:
            return None
        work = partial(merge_texts, base, heads, prose=self._prose)
        data = await self._threads.run(work)
        modes = {content.executable for content in newest}
        executable = modes.pop() if len(modes) == 1 else not ancestor.executable
        return None if data is None else Merged(data, executable, newest)

    async def _text(self, content: Content) -> bytes | None:
        if content.kind is not Kind.FILE or content.size > TEXT_SIZE_MAX:
            return None
        if content.inline is not None:
            return content.inline
        if content.version not in self._known:
            self._known[content.version] = await self._texts.text(self._item, content)
        return self._known[content.version]


def _order(content: Content) -> tuple[int, list[tuple[bytes, int]]]:
    return content.lamport, sorted(content.version.items())
