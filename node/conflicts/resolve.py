"""Ends a conflict: chooses one version, or keeps both, in one entry, so it is over on all devices.

The tree is written, as a person would by editing the file and deleting its copies; the applier does
the rest, with all its checks, and moves what it displaces to history. What was not chosen can be
restored. A file that is in no conflict may be chosen as well: its bytes are put on the disk first.

Nothing is written while the disk holds what the tree does not know yet, of the file or of a copy.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from crdt.actions import Draft, Writer
from crdt.errors import CallerError, WorldError
from crdt.ids import ItemId
from crdt.naming import fit_name, original_name, split_name
from crdt.slot import Kind, Profile
from crdt.tree import ViewRow
from node.conflicts.find import Conflict, Conflicts, author
from node.control.facade import Keep
from node.files.applier import Verdict, execute
from node.files.scanner import is_gone
from node.index.disk_rows import DiskRow
from node.sync.commit import new_writer, write_entry
from node.sync.planner import still_as_agreed
from node.sync.prepared import prepare, record_prepared

if TYPE_CHECKING:
    from node.sync.engine import FolderEngine

FILE_SIZE_MAX: Final = 64 * 1024 * 1024  # bytes of a file from elsewhere; it goes through memory
SCAN_TIMEOUT_S: Final = 5.0  # for a look at what seems to have changed
PLACE_TIMEOUT_S: Final = 20.0  # until the answer says that the rest goes on in the background
NOTHING_CHANGED: Final = "Nothing was changed."


class ResolveError(CallerError):
    """What was asked cannot be done; nothing was changed."""

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(f"{why}. {NOTHING_CHANGED}{' ' if hint else ''}{hint}")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The paths that are left, and whether all of it lies on the disk already."""

    paths: tuple[str, ...]
    complete: bool


class Resolver:
    """Resolves one conflict."""

    def __init__(self, engine: FolderEngine) -> None:
        self._engine = engine
        self._folder = engine.folder

    async def resolve(self, path: str, keep: Keep, file: str | None) -> Resolved:
        """End the conflict that what lies at `path` is part of.

        Args:
            path: Within the folder: the file, or one of its copies.
            keep: Which version; `FILE` takes the bytes of `file`, an absolute path.
            file: See `keep`.
        Raises:
            ResolveError: it cannot be done.
            OSError: the disk refused.
        """
        self._check_folder()
        conflict = self._conflict(path)
        chosen, data = None, None
        if keep is Keep.FILE:
            assert file is not None, "checked by whoever asks"
            chosen = self._named(conflict, file)
            if chosen is None:
                data = await self._engine.threads.run(_read, file)
        elif keep is not Keep.BOTH:
            chosen = _choose(conflict, keep, own=self._folder.identity.device)
        if keep is not Keep.BOTH and conflict.shown.content.kind is not Kind.FILE:
            raise ResolveError(
                f"'{conflict.path}' is no file, so there is nothing to choose",
                "Use --keep both, or rename one of them.",
            )
        await self._settle(conflict)
        self._check_folder()
        if self._conflict(path).rows != conflict.rows:
            raise ResolveError(f"'{path}' changed meanwhile", "Try again.")
        if keep is Keep.BOTH:
            paths = self._keep_both(conflict)
        elif data is not None:
            paths = await self._keep_data(conflict, data)
        else:
            assert chosen is not None
            paths = self._keep_one(conflict, chosen)
        items = {row.item for row in conflict.rows}
        return Resolved(paths, await self._placed(items))

    def _check_folder(self) -> None:
        engine = self._engine
        if engine.stopped is not None:
            raise ResolveError(f"the folder is stopped: {engine.stopped}")
        if not engine.allowed() or not engine.scans.first_done:
            why = "paused" if engine.paused else "not ready yet"
            raise ResolveError(f"the folder is {why}", "Try again once it runs.")
        if not self._folder.roster.may_write(self._folder.identity.device):
            raise ResolveError("this device may only read the folder")

    def _conflict(self, path: str) -> Conflict:
        found = Conflicts(self._folder).at(path)
        if found is None:
            raise ResolveError(f"'{path}' is in no conflict", "`shoal conflicts` lists them.")
        return found

    def _named(self, conflict: Conflict, file: str) -> ViewRow | None:
        """The version that lies at `file`, if it is one of the conflict."""
        for row in conflict.rows:
            where = self._folder.disk.path(row.item)
            if where is not None and os.path.join(self._engine.path, where) == file:
                return row
        return None

    # --- the disk -------------------------------------------------------------------------------

    async def _settle(self, conflict: Conflict) -> None:
        """Return once the disk holds what the tree says of all versions."""
        for row in conflict.rows:
            known = self._folder.disk.get(row.item)
            where = self._folder.disk.path(row.item)
            if known is None or where is None or known.digest != row.content.digest:
                raise ResolveError(f"'{row.name}' is being synced", "Try again in a moment.")
            if await self._is_agreed(where, known):
                continue
            seen = self._engine.scans.done.count
            self._engine.scans.hint([where])
            with trio.move_on_after(SCAN_TIMEOUT_S):
                while not await self._is_agreed(where, self._folder.disk.get(row.item)):
                    seen = await self._engine.scans.done.wait_past(seen)
                    self._engine.scans.hint([where])
            now = self._folder.disk.get(row.item)
            if now is None or now.digest != known.digest or not await self._is_agreed(where, now):
                raise ResolveError(
                    f"'{row.name}' was changed on this disk just now", "Try again in a moment."
                )

    async def _is_agreed(self, where: str, known: DiskRow | None) -> bool:
        try:
            observed = await self._engine.threads.run(self._engine.fs.lstat, where)
        except OSError as error:
            if is_gone(error):
                return False
            raise
        return known is not None and still_as_agreed(observed, known)

    async def _placed(self, items: set[ItemId]) -> bool:
        """True once all lies on the disk; False if that takes longer than people wait."""
        pending = self._folder.pending
        with trio.move_on_after(PLACE_TIMEOUT_S):
            while not items.isdisjoint(pending):
                await self._engine.changed.wait_past(self._engine.changed.count)
        return items.isdisjoint(pending)

    # --- writing --------------------------------------------------------------------------------

    def _keep_one(self, conflict: Conflict, chosen: ViewRow) -> tuple[str, ...]:
        folder, shown = self._folder, conflict.shown
        with folder.transaction():
            writer = new_writer(folder)
            _drop_copies(writer, conflict)
            if chosen.item != shown.item:
                _edit(writer, shown, _draft(chosen))
            folder.look_at(write_entry(folder, writer))
        folder.advanced.ring()
        folder.work.ring()
        return (conflict.path,)

    async def _keep_data(self, conflict: Conflict, data: bytes) -> tuple[str, ...]:
        engine, folder, shown = self._engine, self._folder, conflict.shown
        async with engine.disk_lock:
            row, where = folder.disk.get(shown.item), folder.disk.path(shown.item)
            if row is None or where is None or row.digest != shown.content.digest:
                raise ResolveError(f"'{conflict.path}' changed meanwhile", "Try again.")
            content = shown.content
            profile = Profile.SMALL if content.manifest is None else content.manifest.profile
            prepared = prepare(
                folder,
                row,
                where,
                data,
                mtime_ns=folder.clock.wall_ns(),
                executable=content.executable,
                profile=profile,
            )
            (outcome,) = await engine.threads.run(execute, engine.fs, [prepared.work])
            if outcome.error is not None and outcome.verdict is Verdict.FAILED:
                raise outcome.error
            if outcome.verdict is not Verdict.DONE:
                engine.scans.hint([where])
                raise ResolveError(f"'{conflict.path}' changed meanwhile", "Try again.")
            try:
                with folder.transaction():
                    writer = new_writer(folder)
                    _drop_copies(writer, conflict)
                    _edit(writer, shown, prepared.draft)
                    record_prepared(folder, shown.item, writer, prepared, outcome)
            except BaseException:
                engine.scans.hint([where])  # as if a person had put it there
                raise
        folder.advanced.ring()
        folder.work.ring()
        return (conflict.path,)

    def _keep_both(self, conflict: Conflict) -> tuple[str, ...]:
        """Give each copy a name as people give them, so that it is no copy any more."""
        folder, given = self._folder, dict[ItemId, str]()
        with folder.transaction():
            writer = new_writer(folder)
            for copy in conflict.copies:
                given[copy.item] = self._free_name(copy, set(given.values()))
                writer.move(copy.item, copy.parent, given[copy.item])
            folder.look_at(write_entry(folder, writer))
        folder.advanced.ring()
        folder.work.ring()
        paths = [folder.tree.path(item) or name for item, name in given.items()]
        return (conflict.path, *paths)

    def _free_name(self, copy: ViewRow, given: set[str]) -> str:
        stem, ending = split_name(original_name(copy.name) or copy.name)
        number = 2
        while True:
            name = fit_name(stem, f" ({number})", ending)
            if name not in given and self._folder.tree.child(copy.parent, name) is None:
                return name
            number += 1


def _choose(conflict: Conflict, keep: Keep, *, own: bytes) -> ViewRow:
    mine = [row for row in conflict.rows if author(row.content) == own]
    theirs = [row for row in conflict.rows if row not in mine]
    found = mine if keep is Keep.MINE else theirs
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"'{row.name}'" for row in found or conflict.rows)
    which = "was written on this device" if keep is Keep.MINE else "was written elsewhere"
    count = "none" if not found else "more than one"
    raise ResolveError(f"{count} of the versions {which}", f"Name it: --keep FILE ({names}).")


def _drop_copies(writer: Writer, conflict: Conflict) -> None:
    for copy in conflict.copies:
        writer.delete(copy.item)


def _edit(writer: Writer, shown: ViewRow, draft: Draft) -> None:
    writer.edit(shown.item, draft, base=shown.content.version)


def _draft(row: ViewRow) -> Draft:
    content = row.content
    return Draft(
        kind=content.kind,
        size=content.size,
        mtime_ns=content.mtime_ns,
        executable=content.executable,
        inline=content.inline,
        manifest=content.manifest,
        target=content.target,
    )


def _read(path: str) -> bytes:
    """The bytes of a file that a person named."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ResolveError(f"{path} is no file")
            with os.fdopen(descriptor, "rb", closefd=False) as handle:
                data = handle.read(FILE_SIZE_MAX + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise WorldError(f"{path} cannot be read: {error.strerror}. {NOTHING_CHANGED}") from error
    if len(data) > FILE_SIZE_MAX:
        raise ResolveError(
            f"{path} is larger than {FILE_SIZE_MAX // 1024**2} MiB",
            "Copy it over the file yourself, and delete the conflict copies.",
        )
    return data
