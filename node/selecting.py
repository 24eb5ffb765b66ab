"""What people say of the directories that live on a device, and what they are told."""

from __future__ import annotations

from typing import Final

from crdt.errors import CallerError
from crdt.slot import Kind
from node.control.facade import SelectionInfo
from node.sync.engine import FolderEngine

NOTHING: Final = "nothing was changed"
UNSELECTED_MAX: Final = 10_000  # directories; each look at an item asks for all that it lies in
WAITING_SHOWN_MAX: Final = 100  # paths


def choose(engine: FolderEngine, path: str, *, lives_here: bool) -> None:
    """Let the directory at `path` live on this disk, or not; durable when it returns.

    Raises:
        CallerError: there is no such directory, or it lies in one that is left out.
    """
    folder = engine.folder
    selection = folder.selection
    if not path:
        raise CallerError(
            f"the whole folder cannot be left out, only directories in it; {NOTHING}. To stop "
            "syncing it, pause it."
        )
    shown = folder.tree.resolve(path)
    if shown is None or shown.content.kind is not Kind.DIRECTORY:
        what = "no such directory is" if shown is None else "that is no directory"
        raise CallerError(f"'{path}': {what} in this folder; {NOTHING}")
    above = selection.unselected_above(shown)
    if above is not None and above != shown.item:
        raise CallerError(
            f"'{path}' lies in '{folder.tree.path(above)}', which does not live on this device; "
            f"{NOTHING}. Select that first."
        )
    if lives_here == (above is None):
        return
    if not lives_here and len(selection.paths()) >= UNSELECTED_MAX:
        raise CallerError(f"no more than {UNSELECTED_MAX} directories can be left out; {NOTHING}")
    folder.choose(shown.item, lives_here=lives_here)
    engine.scans.hint([path])
    engine.apply.retry_all()
    engine.changed.ring()


def selection_info(engine: FolderEngine) -> SelectionInfo:
    """What of a folder does not live here, and which copies still wait to go."""
    folder = engine.folder
    waiting = []
    if folder.selection.active:
        for item in folder.pending:
            path = folder.tree.path(item) if item in engine.apply.waiting else None
            if path is not None and folder.hides(item):
                waiting.append(path)
            if len(waiting) == WAITING_SHOWN_MAX:
                break
    return SelectionInfo(tuple(folder.selection.paths()), tuple(sorted(waiting)))
