"""What a folder's history looks like to the control API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from crdt.errors import CallerError
from crdt.ids import DeviceId
from node.control.facade import (
    HistoryResult,
    KeepResult,
    RestoreResult,
    TrashItem,
    VersionInfo,
)
from node.history.availability import Availability
from node.history.policy import Policy
from node.history.restore import RestoreError, Restorer
from node.history.versions import Version, Versions

if TYPE_CHECKING:
    from node.sync.engine import FolderEngine

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


async def history_of(engine: FolderEngine, path: str) -> HistoryResult:
    """The versions of a path.

    Raises:
        CallerError: it is a directory, or nothing is known of it.
    """
    versions = Versions(engine.folder)
    found = versions.of_path(path) if path else []
    if not found:
        if versions.directories_at(path):
            raise CallerError(
                f"'{path or '.'}' is a directory. `shoal trash` lists what was deleted in it; "
                "`shoal restore DIR --at TIME` brings back what was in it."
            )
        raise CallerError(f"nothing is known of '{path}'. `shoal trash` lists what was deleted.")
    availability = Availability(engine.folder, engine.blocks)
    available = await availability.of_all(one.content for one in found)
    return HistoryResult(
        path,
        tuple(_info(engine, one, ok) for one, ok in zip(found, available, strict=True)),
    )


def _info(engine: FolderEngine, one: Version, available: bool) -> VersionInfo:
    return VersionInfo(
        version=one.id,
        time=time_text(one.stamp.time_ms),
        device=one.device.text,
        name=_name(engine, one.device),
        size=one.content.size,
        deleted=one.deleted,
        available=available,
        current=one.current,
    )


async def restore(
    engine: FolderEngine, path: str, *, version: str | None, at_ms: int | None, to: str | None
) -> RestoreResult:
    """See `Restorer.restore`; `to` is absolute."""
    inside = None
    if to is not None:
        inside = relative(engine.path, to)
        if inside is None:
            raise RestoreError(
                f"{to} lies outside of the folder {engine.path}",
                "Restore within the folder, then copy it out.",
            )
    done = await Restorer(engine).restore(path, version=version, at_ms=at_ms, to=inside)
    return RestoreResult(done.paths, done.complete)


def trash_of(engine: FolderEngine, directory: str) -> tuple[TrashItem, ...]:
    """What was deleted in a directory and below it."""
    return tuple(
        TrashItem(
            path=one.path,
            time=time_text(one.version.stamp.time_ms),
            device=one.version.device.text,
            name=_name(engine, one.version.device),
            size=one.version.content.size,
            kind=one.version.content.kind.name.lower(),
        )
        for one in Versions(engine.folder).deleted_below(directory)
    )


def kept(engine: FolderEngine) -> KeepResult:
    """The policy, and what is kept."""
    policy, usage = engine.history.policy, engine.history.usage()
    return KeepResult(
        all_s=policy.all_s,
        daily_s=policy.daily_s,
        share=policy.share,
        size=policy.size,
        versions=usage.versions,
        used=usage.size,
        limit=usage.limit,
    )


def changed(
    policy: Policy, *, all_s: int | None, daily_s: int | None, share: float | None, size: int | None
) -> Policy:
    """The policy with what is not None.

    Raises:
        CallerError: a value makes no sense.
    """
    try:
        return Policy(
            all_s=policy.all_s if all_s is None else all_s,
            daily_s=policy.daily_s if daily_s is None else daily_s,
            share=policy.share if share is None else share,
            size=policy.size if size is None else size,
        )
    except ValueError as error:
        raise CallerError(f"{error}. Nothing was changed.") from None


def relative(root: str, path: str) -> str | None:
    """`path` seen from `root`; None when it lies outside."""
    try:
        found = Path(path).relative_to(root).as_posix()
    except ValueError:
        return None
    return "" if found == "." else found


def shown_path(engine: FolderEngine, path: str) -> str:
    """The path in the folder of an absolute one, as the tree has it: a disk may have an alias."""
    inside = relative(engine.path, path) or ""
    row = engine.folder.disk.resolve(inside) if inside else None
    shown = None if row is None else engine.folder.tree.path(row.item)
    return inside if shown is None else shown


def time_text(time_ms: int) -> str:
    """ISO 8601 in UTC, to the millisecond: `2026-11-21T08:49:33.123Z`."""
    try:
        moment = _EPOCH + timedelta(milliseconds=time_ms)
    except OverflowError:
        moment = datetime.max.replace(tzinfo=UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03}Z"


def _name(engine: FolderEngine, device: DeviceId) -> str:
    member = engine.folder.roster.members.get(device)
    return device.short if member is None else member.name
