"""What a folder's conflicts look like to the control API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from crdt.errors import CallerError
from crdt.ids import ItemId
from crdt.merge_text import TEXT_SIZE_MAX, is_text
from crdt.slot import Content, Kind
from crdt.tree import ViewRow
from node.conflicts.find import Conflict, Conflicts, author, stamp_ms
from node.conflicts.resolve import Resolver
from node.control.conflict_shapes import ConflictInfo, ConflictText, ConflictTexts
from node.control.conflict_shapes import ConflictVersion as VersionOf
from node.control.facade import Keep, ResolveResult
from node.history.answers import time_text

if TYPE_CHECKING:
    from node.sync.engine import FolderEngine

TEXT_TIMEOUT_S: Final = 5.0  # for a text that another device has to send


def conflicts_of(engine: FolderEngine, directory: str) -> tuple[ConflictInfo, ...]:
    """The conflicts in a directory and below it, or that of a file, by path."""
    found = Conflicts(engine.folder).all()
    return tuple(_info(engine, one) for one in found if _concerns(one, directory))


def _concerns(conflict: Conflict, path: str) -> bool:
    return not path or conflict.path == path or conflict.path.startswith(path + "/")


def _info(engine: FolderEngine, conflict: Conflict) -> ConflictInfo:
    ancestor = conflict.ancestor
    shown = _version(engine, conflict.shown, conflict.path)
    return ConflictInfo(
        path=conflict.path,
        device=shown.device,
        name=shown.name,
        time=shown.time,
        copies=tuple(_version(engine, copy) for copy in conflict.copies),
        ancestor=None if ancestor is None else _of(engine, ancestor, conflict.path),
    )


def _version(engine: FolderEngine, row: ViewRow, path: str | None = None) -> VersionOf:
    return _of(engine, row.content, path or engine.folder.tree.path(row.item) or row.name)


def _of(engine: FolderEngine, content: Content, path: str) -> VersionOf:
    device = author(content)
    member = engine.folder.roster.members.get(device)
    name = device.short if member is None else member.name
    return VersionOf(path, device.text, name, time_text(stamp_ms(engine.folder, content)))


async def texts_of(engine: FolderEngine, path: str) -> ConflictTexts:
    """The versions of a file in conflict, with their texts.

    Raises:
        CallerError: it is in no conflict.
    """
    conflict = Conflicts(engine.folder).at(path)
    if conflict is None:
        raise CallerError(
            f"'{path}' is in no conflict. Nothing was changed. `shoal conflicts` lists them."
        )
    versions = [
        ConflictText(
            version=_version(engine, row),
            text=await _text(engine, row.item, row.content),
        )
        for row in conflict.rows
    ]
    ancestor = conflict.ancestor
    old = None
    if ancestor is not None:
        old = ConflictText(
            version=_of(engine, ancestor, conflict.path),
            text=await _text(engine, conflict.shown.item, ancestor),
        )
    return ConflictTexts(conflict.path, tuple(versions), old)


async def _text(engine: FolderEngine, item: ItemId, content: Content) -> str | None:
    """A version's text; None if it is no text, too large, or not to be had."""
    if content.kind is not Kind.FILE or content.size > TEXT_SIZE_MAX:
        return None
    data = content.inline
    if data is None:
        with trio.move_on_after(TEXT_TIMEOUT_S):
            data = await engine.texts.text(item, content)
    return data.decode() if data is not None and is_text(data) else None


async def resolve(engine: FolderEngine, path: str, keep: Keep, file: str | None) -> ResolveResult:
    """See `Resolver.resolve`."""
    done = await Resolver(engine).resolve(path, keep, file)
    return ResolveResult(done.paths, done.complete)
