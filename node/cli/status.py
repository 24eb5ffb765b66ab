"""`shoal status [DIR]`: folders, peers, progress, what waits and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from crdt.errors import CallerError
from node.cli.common import DirectoryType, Invocation, common_options
from node.cli.text import count_text, size_text
from node.control.facade import FolderStatus, PeerStatus, Progress, Status

SHORT = 7  # characters of a device id; enough to tell a folder's devices apart
WARNINGS_MAX = 10  # shown to people; `--json` has all that the node keeps


@click.command()
@click.argument("directory", metavar="[DIR]", required=False, type=DirectoryType())
@common_options
@click.pass_obj
def status(invocation: Invocation, directory: Path | None) -> None:
    """Show every folder of this device, or the one that DIR is in."""
    with invocation.client() as client:
        found = client.status()
    if directory is not None:
        found = replace(found, folders=_containing(found, directory))
    invocation.answer(found, *_lines(found))


def _containing(found: Status, directory: Path) -> tuple[FolderStatus, ...]:
    folders = tuple(one for one in found.folders if directory.is_relative_to(one.path))
    if not folders:
        raise CallerError(f"{directory} lies in no folder of this node. Nothing was changed.")
    return folders


def _lines(found: Status) -> Iterator[str]:
    listening = f"  listening on {found.listening}" if found.listening else ""
    yield f"{found.name}  {found.device[:SHORT]}{listening}"
    for folder in found.folders:
        yield ""
        yield from _folder_lines(folder)


def _folder_lines(folder: FolderStatus) -> Iterator[str]:
    reason = f": {folder.reason}" if folder.reason else ""
    yield f"{folder.path}  {folder.state}{reason}"
    yield f"  {count_text(folder.files, 'file')}, {size_text(folder.bytes)}"
    if folder.needs.files:
        needs = folder.needs
        yield f"  still to come: {count_text(needs.files, 'file')}, {size_text(needs.bytes)}"
    if folder.progress is not None:
        yield f"  {progress_text(folder.progress)}"
    if folder.conflicts:
        yield f"  {count_text(folder.conflicts, 'conflict')}"
    for peer in folder.peers:
        yield f"  {_peer_text(peer)}"
    if not folder.peers:
        yield "  no other device yet; `shoal invite` lets one join"
    if folder.local:
        changes = count_text(len(folder.local), "change")
        yield f"  {changes} on this disk alone, since it may only read; `shoal revert` throws away:"
        yield from (f"    {one.action}: {one.path}" for one in folder.local[:WARNINGS_MAX])
    yield from (f"  not on this device: {one}" for one in folder.unselected[:WARNINGS_MAX])
    for warning in folder.warnings[:WARNINGS_MAX]:
        path = f"{warning.path}: " if warning.path else ""
        yield f"  ! {path}{warning.message}"
    if len(folder.warnings) > WARNINGS_MAX:
        yield f"  ! and {len(folder.warnings) - WARNINGS_MAX} more; --json has them"


def _peer_text(peer: PeerStatus) -> str:
    connected = "connected" if peer.connected else "not connected"
    return (
        f"{peer.name}  {peer.device[:SHORT]}  {connected}, {'' if peer.in_sync else 'not '}in sync"
    )


def progress_text(progress: Progress) -> str:
    """`receiving: 1.2 GB of 3.4 GB (35 %), 12 of 40 files`."""
    text = f"{progress.phase}: {size_text(progress.done_bytes)}"
    if progress.total_bytes:
        share = min(100, 100 * progress.done_bytes // progress.total_bytes)
        text += f" of {size_text(progress.total_bytes)} ({share} %)"
    if progress.total_files:
        return f"{text}, {progress.done_files:,} of {count_text(progress.total_files, 'file')}"
    return f"{text}, {count_text(progress.done_files, 'file')}"
