"""Brings versions back: as new versions, through the tree, never over an edit that it has not seen.

A restore writes slots, as an edit or a creation would; the applier then does the rest, with all
its checks, and moves what it displaces to history. So a restore travels to all devices, can be
undone by another one, and dies well at any point: before its entry is committed nothing has
changed, after it the tree says what is wanted.

Before anything is written, all bytes are fetched into the store, so that the tree never wants what
nobody has; and every place is looked at: where the disk does not hold what the tree says, there is
an edit that is not synced yet, and the restore is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from crdt.actions import Draft, Writer
from crdt.errors import CallerError, WorldError
from crdt.heads import self_alive
from crdt.ids import ROOT, BlockId, ItemId
from crdt.slot import BlockRef, Content, Kind, check_name
from crdt.tree import ViewRow
from crdt.version_vector import EMPTY
from node.blocks.manifest import Walk
from node.files.layout import is_ours_path
from node.files.port import StatKind, join
from node.files.scanner import is_gone
from node.history.availability import Availability
from node.history.versions import Version, Versions
from node.sync.commit import ENTRY_INLINE_MAX, entry_writes_max, new_writer, write_entry
from node.sync.describe import describe_all
from node.sync.observed import Described
from node.sync.planner import still_as_agreed

if TYPE_CHECKING:
    from node.sync.engine import FolderEngine

FETCH_TIMEOUT_S: Final = 60.0  # for some blocks that a connected peer said it has
FETCHED_AT_ONCE: Final = 16  # blocks; of a large profile they are 64 MiB at most
PLACE_TIMEOUT_S: Final = 20.0  # until the answer says that the rest goes on in the background
NOTHING_CHANGED: Final = "Nothing was changed."
_DIRECTORY: Final = Draft(Kind.DIRECTORY)


class RestoreError(CallerError):
    """What was asked cannot be restored; nothing was changed."""

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(f"{why}. {NOTHING_CHANGED}{' ' if hint else ''}{hint}")


class NotAvailableError(WorldError):
    """No device that is connected has the version's bytes; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore wrote. `complete` is False while some of it is not on the disk yet."""

    paths: tuple[str, ...]
    complete: bool = True


@dataclass(frozen=True, slots=True)
class _Target:
    """What shall lie at a path: a version, or a directory where it is None."""

    path: str
    version: Version | None


@dataclass(slots=True)
class _Written:
    items: set[ItemId] = field(default_factory=set)
    paths: list[str] = field(default_factory=list)


class Restorer:
    """Restores in one folder; make one for each question."""

    def __init__(self, engine: FolderEngine) -> None:
        self._engine = engine
        self._folder = engine.folder
        self._versions = Versions(engine.folder)

    async def restore(
        self, path: str, *, version: str | None, at_ms: int | None, to: str | None
    ) -> Restored:
        """Restore a file, or a directory as of a time.

        Args:
            path: Within the folder, "" for all of it.
            version: As `shoal history` shows it; not with `at_ms`.
            at_ms: Milliseconds since 1970 UTC.
            to: Where to put it instead, within the folder; nothing may lie there.
        Raises:
            RestoreError: it cannot be done.
            NotAvailableError: nobody who is connected has the bytes.
        """
        self._check_folder()
        targets = self._plan(path, version, at_ms)
        if to is not None:
            targets = self._moved(targets, path, to)
        targets = [target for target in targets if self._differs(target)]
        before = {target.path: self._occupant(target) for target in targets}
        self._check_room(targets)
        blocks = await self._fetch(targets)
        with self._engine.history.holding(blocks):
            await self._check_disk(targets)
            self._check_folder()
            if any(self._occupant(target) != before[target.path] for target in targets):
                raise RestoreError(f"'{path}' changed meanwhile", "Try again.")
            written = self._write(targets)
            complete = await self._placed(written.items)
        return Restored(tuple(written.paths), complete)

    def _check_folder(self) -> None:
        engine = self._engine
        if engine.stopped is not None:
            raise RestoreError(f"the folder is stopped: {engine.stopped}")
        if not engine.allowed() or not engine.scans.first_done:
            why = "paused" if engine.paused else "not ready yet"
            raise RestoreError(f"the folder is {why}", "Try again once it runs.")
        if not self._folder.roster.may_write(self._folder.identity.device):
            raise RestoreError("this device may only read the folder")

    # --- what is wanted -------------------------------------------------------------------------

    def _plan(self, path: str, version: str | None, at_ms: int | None) -> list[_Target]:
        shown = self._folder.tree.resolve(path) if path else None
        directories = self._versions.directories_at(path)
        if version is None and at_ms is not None:
            found = self._versions.at_path(path, at_ms) if path else None
            if found is not None:
                return [_Target(path, found)]
            if directories:
                return self._plan_directory(path, at_ms)
        versions = self._versions.of_path(path) if path else []
        if not versions:
            if directories:
                raise RestoreError(f"'{path or '.'}' is a directory", "Say as of when: --at TIME.")
            raise RestoreError(f"nothing is known of '{path}'", "`shoal trash` lists deletions.")
        if at_ms is not None:
            self._refuse_time(path, versions, at_ms)
        if version is not None:
            chosen = next((v for v in versions if v.id.lower() == version.lower()), None)
            if chosen is None:
                raise RestoreError(
                    f"'{path}' has no version {version}", f"`shoal history '{path}'` lists them."
                )
            return [_Target(path, chosen)]
        return [_Target(path, _latest(path, versions, shown))]

    def _refuse_time(self, path: str, versions: Sequence[Version], at_ms: int) -> None:
        if at_ms < min(one.stamp.time_ms for one in versions):
            raise RestoreError(
                f"the history of '{path or '.'}' begins later than that",
                f"`shoal history '{path}'` lists what there is." if path else "",
            )
        raise RestoreError(f"there was nothing at '{path}' then")

    def _plan_directory(self, path: str, at_ms: int) -> list[_Target]:
        tops = self._versions.directories_at(path, at_ms)
        found = self._versions.below(tops, at_ms) if tops else {}
        if not found:
            raise RestoreError(f"there was nothing in '{path or '.'}' then")
        top = [_Target(path, None)] if path else []
        return top + [_Target(join(path, below), version) for below, version in found.items()]

    def _moved(self, targets: list[_Target], path: str, to: str) -> list[_Target]:
        """The same below another path, where nothing lies."""
        if not to or is_ours_path(to):
            raise RestoreError(f"'{to or '.'}' is no place for it", "Choose another --to.")
        shown = self._folder.tree.resolve(to)
        if shown is not None and shown.content.kind is Kind.DIRECTORY and path:
            to = join(to, path.rpartition("/")[2])
            shown = self._folder.tree.resolve(to)
        if shown is not None:
            raise RestoreError(f"'{to}' is there already", "Choose another --to.")
        top = [] if path else [_Target(to, None)]
        return top + [_Target(to + t.path[len(path) :] if path else join(to, t.path), t.version)
                      for t in targets]  # fmt: skip

    def _occupant(self, target: _Target) -> ViewRow | None:
        return self._folder.tree.resolve(target.path)

    def _differs(self, target: _Target) -> bool:
        shown = self._occupant(target)
        if shown is None:
            return True
        if target.version is None:
            if shown.content.kind is Kind.DIRECTORY:
                return False
            raise RestoreError(f"'{target.path}' was a directory and is a file now", "Use --to.")
        wanted = target.version.content
        if wanted.kind is not shown.content.kind:
            raise RestoreError(f"'{target.path}' is something else than a file now", "Use --to.")
        same = wanted.digest == shown.content.digest
        return not same or wanted.executable != shown.content.executable

    def _check_room(self, targets: Sequence[_Target]) -> None:
        for target in targets:
            is_directory = target.version is None
            if self._engine.ignored(target.path, is_directory) or is_ours_path(target.path):
                raise RestoreError(f"'{target.path}' is not synced", "See .shoalignore.")
            for name in target.path.split("/"):
                try:
                    check_name(name)
                except ValueError as error:
                    raise RestoreError(f"'{target.path}' cannot be a path: {error}") from None
            directory = target.path.rpartition("/")[0]
            while directory:
                shown = self._folder.tree.resolve(directory)
                if shown is not None and shown.content.kind is not Kind.DIRECTORY:
                    raise RestoreError(f"'{directory}' is a file now", "Use --to.")
                directory = directory.rpartition("/")[0]

    # --- its bytes ------------------------------------------------------------------------------

    async def _fetch(self, targets: Sequence[_Target]) -> list[BlockId]:
        """Have all blocks here; returns those that had to come."""
        contents = [one.version.content for one in targets if one.version is not None]
        availability = Availability(self._folder, self._engine.blocks)
        to_be_had = await availability.of_all(contents)
        for target, ok in zip([t for t in targets if t.version], to_be_had, strict=True):
            if not ok:
                raise NotAvailableError(
                    f"no device that is connected has that version of '{target.path}'. "
                    f"{NOTHING_CHANGED} Try again when others are there, or choose another "
                    "version; `shoal history` says which are available."
                )
        fetched: list[BlockId] = []
        for content in contents:
            if content.manifest is not None:
                fetched += await self._fetch_one(content)
        return fetched

    async def _fetch_one(self, content: Content) -> list[BlockId]:
        assert content.manifest is not None
        exchange, folder = self._engine.blocks, self._folder
        walk, nodes = Walk(content.manifest, content.size), dict[BlockId, bytes]()
        fetched = []
        while True:
            refs = [ref for ref, _ in walk.blocks()]
            for start in range(0, len(refs), FETCHED_AT_ONCE):
                # Reading what should be here shows whether it really is.
                some = await self._fetch_some(refs[start : start + FETCHED_AT_ONCE], content.size)
                new = {ref: data for ref, data in some.items() if not exchange.has(ref.block)}
                if new:
                    await self._engine.sealed.keep(new)
                    fetched += [ref.block for ref in new]
            wanted = walk.wants()
            if wanted is None:
                break
            with trio.move_on_after(FETCH_TIMEOUT_S):
                nodes[wanted.block] = await exchange.node(wanted)
            if wanted.block not in nodes:
                raise _came_to_nothing()
            walk.feed(nodes[wanted.block])
        with folder.transaction():
            folder.locations.put_nodes(nodes)
        return fetched

    async def _fetch_some(self, refs: Sequence[BlockRef], size: int) -> dict[BlockRef, bytes]:
        found: dict[BlockRef, bytes] = {}

        async def fetch(ref: BlockRef) -> None:
            found[ref] = await self._engine.blocks.block(ref, transfer_size=size)

        with trio.move_on_after(FETCH_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for ref in set(refs):
                    nursery.start_soon(fetch, ref)
            return found
        raise _came_to_nothing()

    # --- the places -----------------------------------------------------------------------------

    async def _check_disk(self, targets: Sequence[_Target]) -> None:
        """Refuse where the disk shows what the tree does not know yet."""
        folder, engine = self._folder, self._engine
        for target in targets:
            shown = self._occupant(target)
            row = folder.disk.resolve(target.path) if shown is None else folder.disk.get(shown.item)
            path = target.path if row is None else folder.disk.path(row.item)
            if (
                (shown is None) != (row is None)
                or path is None
                or (shown is not None and row is not None and row.digest != shown.content.digest)
            ):
                raise RestoreError(f"'{target.path}' is being synced", "Try again in a moment.")
            try:
                stat = await engine.threads.run(engine.fs.lstat, path)
            except OSError as error:
                if not is_gone(error):
                    raise
                if row is not None:
                    raise _unsynced(target.path) from None
                continue
            if row is None:
                raise _unsynced(target.path)
            if still_as_agreed(stat, row):
                continue
            job = folder.reading_job(path, StatKind(int(row.kind)), row)
            (seen,) = await engine.threads.run(describe_all, engine.fs, [job], folder.block_key)
            if not isinstance(seen, Described) or seen.digest != row.digest:
                raise _unsynced(target.path)

    # --- writing --------------------------------------------------------------------------------

    def _write(self, targets: Sequence[_Target]) -> _Written:
        """Write the targets, in as few entries as they fit."""
        folder, written = self._folder, _Written()
        rest, limit = list(targets), entry_writes_max(folder)
        while rest:
            with folder.transaction():
                writer, made, inline = new_writer(folder), dict[str, ItemId](), 0
                while rest and inline <= ENTRY_INLINE_MAX and len(writer.writes) < limit:
                    target = rest.pop(0)
                    written.items.add(self._write_one(target, writer, made))
                    written.paths.append(target.path)
                    if target.version is not None:
                        inline += len(target.version.content.inline or b"")
                if writer.writes:
                    folder.look_at(write_entry(folder, writer))
        if written.paths:
            folder.advanced.ring()
            folder.work.ring()
        return written

    def _write_one(self, target: _Target, writer: Writer, made: dict[str, ItemId]) -> ItemId:
        if target.version is None:
            return self._directory(target.path, writer, made)
        shown, content = self._occupant(target), target.version.content
        draft = Draft(
            kind=content.kind,
            size=content.size,
            mtime_ns=content.mtime_ns,
            executable=content.executable,
            inline=content.inline,
            manifest=content.manifest,
            target=content.target,
        )
        if shown is not None:
            writer.edit(shown.item, draft, base=shown.content.version)
            return shown.item
        directory, _, name = target.path.rpartition("/")
        parent = self._directory(directory, writer, made)
        return self._put(target.version.item, parent, name, draft, writer)

    def _directory(self, path: str, writer: Writer, made: dict[str, ItemId]) -> ItemId:
        """The directory at `path`; brought back, or made, where there is none."""
        if not path:
            return ROOT
        if path not in made:
            shown = self._folder.tree.resolve(path)
            if shown is not None:
                return shown.item
            directory, _, name = path.rpartition("/")
            parent = self._directory(directory, writer, made)
            former = sorted(self._versions.directories_at(path))
            item = next((item for item in former if self._is_dead(item)), None)
            made[path] = self._put(item, parent, name, _DIRECTORY, writer)
        return made[path]

    def _put(
        self, item: ItemId | None, parent: ItemId, name: str, draft: Draft, writer: Writer
    ) -> ItemId:
        """Bring a deleted item back, or make a new one."""
        if item is not None and self._is_dead(item):
            writer.edit(item, draft, base=EMPTY)
            writer.move(item, parent, name)
            return item
        item = self._folder.new_item()
        writer.create(item, parent, name, draft)
        return item

    def _is_dead(self, item: ItemId) -> bool:
        slots = self._folder.tree.slots(item)
        return bool(slots) and self._folder.tree.row(item) is None and not self_alive(slots)

    async def _placed(self, items: set[ItemId]) -> bool:
        """True once all lies on the disk; False if that takes longer than people wait."""
        with trio.move_on_after(PLACE_TIMEOUT_S):
            while not items.isdisjoint(self._folder.pending):
                await self._engine.changed.wait_past(self._engine.changed.count)
        return items.isdisjoint(self._folder.pending)


def _latest(path: str, versions: Sequence[Version], shown: ViewRow | None) -> Version:
    """What a restore without a version means: what was deleted, or what was before."""
    for one in versions:
        if shown is None or (not one.deleted and one.content.digest != shown.content.digest):
            return one
    raise RestoreError(f"'{path}' has no earlier version")


def _unsynced(path: str) -> RestoreError:
    return RestoreError(
        f"'{path}' was changed on this disk and that is not synced yet",
        "Let it sync (`shoal wait`), or restore somewhere else with --to.",
    )


def _came_to_nothing() -> NotAvailableError:
    return NotAvailableError(
        f"the devices that have that version did not send it in time. {NOTHING_CHANGED} Try again."
    )
