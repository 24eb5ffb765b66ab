"""Disk → tree: turns what a scan found into slot writes, entries and disk rows, in one transaction.

What a person saw is the disk row. So an edit builds on the row's version: if somebody else's newer
version had not reached this disk, the two are concurrent, a conflict and never an overwrite. A
deletion counts only if the row's revision is still the view row's; otherwise only our disk row
goes, and what the person had not seen comes back. What already is as the view wants it is adopted
without a write: that is what a crash between a disk operation and its commit leaves behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from crdt import entry as entries
from crdt.actions import Writer
from crdt.errors import IntegrityError
from crdt.ids import ROOT, ItemId
from crdt.naming import fit_name
from crdt.slot import Kind, Slot
from crdt.tree import ViewRow
from crdt.version_vector import EMPTY, VersionVector
from node.files.port import Stat
from node.index.disk_rows import DiskRow
from node.sync.folder import Folder
from node.sync.observed import Created, Deleted, Described, Edited, Moved, Observed, Touched
from node.sync.planner import GOING, UNSURE, adopts, sure_ctime_ns

ENTRY_WRITES_MAX: Final = 1_000  # slot writes of one entry: 100,000 files make 100 entries
ENTRY_INLINE_MAX: Final = 1024 * 1024  # bytes of inline content in one entry


def commit_observed(
    folder: Folder,
    observations: Sequence[Observed],
    keeps: Callable[[Observed], bool] = lambda _seen: True,
) -> list[Created | Moved]:
    """Write what a scan found; durable when it returns.

    `keeps` is asked about what a reader must not write: True leaves it on this disk as it is, False
    lets the applier make it what the view wants.

    Returns: what is out of date, since the applier was at work where it lies: look at it again.
    """
    before = folder.have
    observations, stale = _up_to_date(folder, observations)
    undone: list[Observed] = []
    if not folder.roster.may_write(folder.identity.device):
        unwritten = [seen for seen in observations if not _needs_no_write(folder, seen)]
        observations = [seen for seen in observations if _needs_no_write(folder, seen)]
        undone = [seen for seen in unwritten if not keeps(seen)]
    with folder.transaction():
        # Moves may permute places: all old places are freed before the first new one is taken.
        for seen in (*observations, *undone):
            if isinstance(seen, Moved):
                folder.disk.drop(seen.row.item)
        rest = list(observations)
        while rest:
            rest = _commit_entry(folder, rest)
        for seen in undone:
            item = seen.item if isinstance(seen, Created) else seen.row.item
            _record(folder, seen, item)
            folder.look_at([item])
    if folder.have != before:
        folder.advanced.ring()
    return stale


def _up_to_date(
    folder: Folder, observations: Sequence[Observed]
) -> tuple[list[Observed], list[Created | Moved]]:
    """The observations in terms of what the disk rows say by now, and those that are out of date.

    Between a look and its commit the applier may have found that a directory or file is another
    item than we took it for, or may have put something there.
    """
    known = {ROOT, *(seen.item for seen in observations if isinstance(seen, Created))}
    writes = folder.roster.may_write(folder.identity.device)  # what a reader makes has no rows
    freed = {seen.row.item for seen in observations if isinstance(seen, Deleted | Moved)}
    current: list[Observed] = []
    stale: list[Created | Moved] = []
    for seen in observations:
        if not isinstance(seen, Created | Moved):
            row = folder.disk.get(folder.disk.heir(seen.row.item))
            current.append(replace(seen, row=row) if row and row.item != seen.row.item else seen)
            continue
        placed = replace(seen, parent=folder.disk.heir(seen.parent))
        occupant = folder.disk.at(placed.parent, placed.name)
        is_free = occupant is None or occupant.item in freed
        parent_is_known = placed.parent in known or folder.disk.get(placed.parent) is not None
        if is_free and (parent_is_known or not writes):
            current.append(placed)
        else:
            stale.append(placed)
    return current, stale


def _needs_no_write(folder: Folder, seen: Observed) -> bool:
    """True when the disk shows what the view wants anyway."""
    match seen:
        case Created():
            return _adopted(folder, seen) is not None
        case Deleted():
            shown = folder.tree.row(seen.row.item)
            return shown is None or shown.revision != seen.row.revision
        case Moved():
            shown = folder.tree.row(seen.row.item)
            name = folder.names.in_tree(seen.name, seen.row)
            place = (folder.tree.representative(seen.parent), name)
            return shown is not None and (shown.parent, shown.name) == place
        case Edited():
            return False
        case Touched():
            return True


def _beside_hidden(folder: Folder, seen: Created | Moved) -> Created | Moved:
    """A directory that people put where one lies that does not live here gets a name of its own:
    it is another one, and nothing of it must leave this disk.
    """
    is_directory = (seen.row.kind if isinstance(seen, Moved) else seen.described.draft.kind) is (
        Kind.DIRECTORY
    )
    if not is_directory or not folder.selection.active:
        return seen
    face = folder.tree.representative(seen.parent)
    wanted = name = _tree_name(folder, seen)
    number = 1
    while (shown := folder.tree.child(face, name)) is not None:
        own = isinstance(seen, Moved) and shown.item == seen.row.item
        if number == 1 and (
            own or folder.disk.get(shown.item) or not folder.selection.hides(shown)
        ):
            return seen
        if own:
            break
        mark = " (also here)" if number == 1 else f" (also here {number})"
        name = fit_name(wanted, mark, "")
        number += 1
    return seen if name == wanted else replace(seen, shown_name=name)


def _tree_name(folder: Folder, seen: Created | Moved) -> str:
    """What the tree is to call it."""
    row = seen.row if isinstance(seen, Moved) else None
    return seen.shown_name or folder.names.in_tree(seen.name, row)


def new_writer(folder: Folder) -> Writer:
    """A writer for our next entry; `write_entry` ends it."""
    device = folder.identity.device
    return Writer(
        folder.tree,
        device=device,
        counter=folder.log.position(device).seq + 1,
        lamport=folder.log.lamport + 1,
        saw=lambda copy: folder.disk.get(copy) is not None,
    )


def _commit_entry(folder: Folder, observations: list[Observed]) -> list[Observed]:
    """Commit one entry's worth; returns what is left."""
    writer = new_writer(folder)
    taken: list[tuple[Observed, ItemId]] = []
    inline = 0
    limit = entry_writes_max(folder)
    for found in observations:
        if len(writer.writes) >= limit or inline > ENTRY_INLINE_MAX:
            break
        seen = found
        if isinstance(seen, Created | Moved):
            seen = _beside_hidden(folder, replace(seen, parent=folder.disk.heir(seen.parent)))
        item = _write(folder, seen, writer)
        taken.append((seen, item))
        if isinstance(seen, Created) and item != seen.item:
            folder.disk.note_heir(seen.item, item)  # what lies in it, if it is a directory
        if isinstance(seen, Created | Edited):
            inline += len(seen.described.draft.inline or b"")
    changed: set[ItemId] = set()
    if writer.writes:
        changed = write_entry(folder, writer)
    for seen, item in taken:
        _record(folder, seen, item)
        changed.add(item)
    folder.look_at(changed)
    return observations[len(taken) :]


def entry_writes_max(folder: Folder) -> int:
    """How many slot writes to collect for one entry; one more action may go beyond."""
    return min(ENTRY_WRITES_MAX, entries.writes_max(len(folder.log.positions)) * 3 // 4)


def write_entry(folder: Folder, writer: Writer) -> set[ItemId]:
    """Append what `writer` collected as our next entry and apply it, in the caller's transaction.

    Returns: the items whose view rows changed, for `Folder.look_at`.
    """
    time_ms = max(0, folder.clock.wall_ns() // 1_000_000)
    folder.log.append(_build_entry(folder, writer.writes, time_ms), time_ms=time_ms)
    device = folder.identity.device
    return folder.tree.apply((item, device, slot) for item, slot in writer.writes)


def _build_entry(
    folder: Folder, writes: Sequence[tuple[ItemId, Slot]], time_ms: int
) -> entries.Entry:
    keys = folder.keys
    if keys.current is None:
        raise IntegrityError("no key to write with has reached this device yet")
    return entries.build_tree(
        folder.identity.seed,
        key=keys.epoch(keys.current),
        after=folder.log.position(folder.identity.device),
        deps=folder.log.have,
        lamport=folder.log.lamport + 1,
        writes=writes,
        nonce=folder.random.bytes(24),
        time_ms=time_ms,
    )


def _write(folder: Folder, seen: Observed, writer: Writer) -> ItemId:
    """Add what `seen` means to `writer`; returns the item that it is about."""
    match seen:
        case Created():
            return _write_created(folder, seen, writer)
        case Edited():
            return _write_edited(folder, seen, writer)
        case Moved():
            item = _actionable(folder, seen.row.item)
            shown = folder.tree.row(item)
            name = _tree_name(folder, seen)
            place = (folder.tree.representative(seen.parent), name)
            if _is_our_doing(folder, seen):
                return seen.row.item
            if shown is None or (shown.parent, shown.name) != place:
                writer.move(item, seen.parent, name)
            return item
        case Deleted():
            shown, row = folder.tree.row(seen.row.item), folder.disk.get(seen.row.item) or seen.row
            if folder.selection.hides(shown) or GOING in {row.revision, seen.row.revision}:
                return seen.row.item  # not a word about the item, only about this disk
            if shown is not None and shown.revision == seen.row.revision:
                writer.delete(seen.row.item)
            elif shown is not None:
                writer.withdraw(seen.row.item, seen.row.version)
            return seen.row.item
        case Touched():
            return seen.row.item


def _is_our_doing(folder: Folder, seen: Moved | Edited) -> bool:
    """True for what the applier had done when the process died, before it could record it."""
    intent = folder.disk.intent(seen.row.item)
    if intent is None:
        return False
    if isinstance(seen, Moved):
        return (intent.parent, intent.name) == (seen.parent, seen.name)
    return intent.digest == seen.described.digest


def _write_created(folder: Folder, seen: Created, writer: Writer) -> ItemId:
    draft, name = seen.described.draft, _tree_name(folder, seen)
    intent = folder.disk.intent_at(seen.parent, seen.name)
    if (
        intent is not None
        and intent.digest == seen.described.digest
        and folder.disk.get(intent.item) is None
    ):
        return intent.item
    shown = _adopted(folder, seen)
    if shown is not None:
        return shown.item
    if folder.tree.slots(seen.item):
        # A directory that the view showed when the walk came by, and that is gone from it now.
        writer.edit(seen.item, draft, base=EMPTY)
        writer.move(seen.item, seen.parent, name)
    else:
        writer.create(seen.item, seen.parent, name, draft)
    return seen.item


def _adopted(folder: Folder, seen: Created) -> ViewRow | None:
    """The view row that what was found is already: left by a crash, or here before we met."""
    shown = None if seen.shown_name else folder.shown_at(seen.parent, seen.name)
    if shown is None or folder.disk.get(shown.item) is not None:
        return None
    fits = adopts(shown.content, seen.described.digest, seen.described.draft.executable)
    return shown if fits else None


def _write_edited(folder: Folder, seen: Edited, writer: Writer) -> ItemId:
    draft, digest = seen.described.draft, seen.described.digest
    if digest != seen.row.digest and _is_our_doing(folder, seen):
        return seen.row.item
    item = _actionable(folder, seen.row.item)
    shown = folder.tree.row(item)
    if shown is not None and adopts(shown.content, digest, draft.executable):
        exact = (shown.content.mtime_ns, digest) == (draft.mtime_ns, digest)
        if exact or digest != seen.row.digest:
            return item  # our own exchange, whose commit did not come to pass
    base = seen.row.version
    if item != seen.row.item:  # its twin, whose versions are others; equal bytes were seen
        same = shown is not None and shown.content.digest == seen.row.digest
        base = shown.content.version if shown is not None and same else EMPTY
    writer.edit(item, draft, base=base, place=(seen.row.parent, seen.row.shown_name))
    return item


def _actionable(folder: Folder, item: ItemId) -> ItemId:
    """The id under which the view shows what lies on this disk as `item`.

    A hidden item that lies here *beside* what stands for it is still one of its own: people act on
    either, and two edits must not meet in one item.
    """
    if folder.tree.row(item) is not None:
        return item
    face = folder.tree.representative(item)
    return item if folder.disk.get(face) is not None else face


# --- disk rows ----------------------------------------------------------------------------------


def _record(folder: Folder, seen: Observed, item: ItemId) -> None:
    """Note in the disk rows what the scan saw."""
    match seen:
        case Created():
            shown_name = _tree_name(folder, seen)
            adopted = folder.names.behind(folder.tree.representative(seen.parent), seen.name)
            if adopted is not None and adopted.item == item:
                shown_name = adopted.name
            place = (seen.parent, seen.name, shown_name)
            _put_described(folder, item, place, seen.described)
            folder.fresh.add(item, folder.clock.monotonic_s())
        case Edited():
            row = folder.disk.get(seen.row.item) or seen.row
            folder.disk.drop(seen.row.item)
            _put_described(folder, item, (row.parent, row.name, row.shown_name), seen.described)
            folder.fresh.add(item, folder.clock.monotonic_s())
        case Moved():
            if item != seen.row.item:
                folder.disk.rekey(seen.row.item, item)
            # The parent is the directory on this disk, even where the view unites it with another.
            shown_name = _tree_name(folder, seen)
            row = replace(seen.row.moved(seen.parent, seen.name), item=item, shown_name=shown_name)
            row = replace(row, revision=_agreed_revision(folder, row, folder.tree.row(item)))
            # A rename hides in the ctime whether the content changed too: the next scan reads it.
            put_row(folder, row, replace(seen.stat, ctime_ns=UNSURE))
        case Deleted():
            folder.disk.drop(seen.row.item)
            folder.locations.drop(seen.row.item)
        case Touched():
            row_now = folder.disk.get(seen.row.item)
            if row_now is not None and row_now.revision == GOING:
                shown = folder.tree.row(row_now.item)
                row_now = replace(row_now, revision=_agreed_revision(folder, row_now, shown))
            if row_now is not None:
                put_row(folder, row_now, seen.stat)


def _put_described(
    folder: Folder, item: ItemId, place: tuple[ItemId, str, str], described: Described
) -> None:
    """Args: `place` is the directory, the name on this disk, and the name in the tree."""
    parent, name, shown_name = place
    draft, stat = described.draft, described.stat
    row = DiskRow(
        item=item,
        parent=parent,
        name=name,
        kind=draft.kind,
        version=_version_on_disk(folder, item, described),
        digest=described.digest,
        revision=0,
        shown_name=shown_name,
        inode=stat.inode,
        size=stat.size,
        mtime_ns=stat.mtime_ns,
        ctime_ns=stat.ctime_ns,
        executable=stat.executable,
        profile=0 if draft.manifest is None else int(draft.manifest.profile),
    )
    row = replace(row, revision=_agreed_revision(folder, row, folder.tree.row(item)))
    put_row(folder, row, stat)
    folder.locations.replace(item, described.blocks)
    folder.locations.put_nodes(described.nodes)


def _version_on_disk(folder: Folder, item: ItemId, described: Described) -> VersionVector:
    """The content version that the bytes on the disk are; EMPTY when it is only almost that one.

    With EMPTY the planner sets mtime and executable bit as the view wants them.
    """
    shown = folder.tree.row(item)
    own = folder.tree.slots(item).get(folder.identity.device)
    draft = described.draft
    candidates = (None if shown is None else shown.content, None if own is None else own.content)
    for content in candidates:
        if content is None or content.digest != described.digest:
            continue
        if draft.kind is not Kind.FILE:
            return content.version
        if (content.mtime_ns, content.executable) == (draft.mtime_ns, draft.executable):
            return content.version
    intent = folder.disk.intent(item)
    if intent is not None and intent.digest == described.digest:
        return intent.version  # put here by us; the view has moved on since
    return EMPTY


def _agreed_revision(folder: Folder, row: DiskRow, shown: ViewRow | None) -> int:
    """The view row's revision if the disk shows just that, 0 otherwise.

    A person who deletes what lies here has seen no more than this.
    """
    if shown is None:
        return 0
    seen = row.kind is Kind.DIRECTORY or row.version == shown.content.version
    return shown.revision if seen else 0


def put_row(folder: Folder, row: DiskRow, stat: Stat) -> None:
    """Store `row` with what lstat said, and with the doubt that a fresh timestamp leaves."""
    row = replace(
        row,
        inode=stat.inode,
        size=stat.size,
        mtime_ns=stat.mtime_ns,
        ctime_ns=sure_ctime_ns(stat, folder.clock.wall_ns()),
        executable=stat.executable,
    )
    folder.disk.put(row)
    folder.unkept.note(row)
