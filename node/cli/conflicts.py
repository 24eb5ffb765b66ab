"""`shoal conflicts`: list, show, resolve."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from node.cli.common import (
    Invocation,
    absolute,
    common_options,
    directory_argument,
    path_argument,
)
from node.cli.text import count_text, local_time_text
from node.control.conflict_shapes import ConflictInfo, ConflictText, ConflictTexts, ConflictVersion
from node.control.facade import Keep


class _ListsByDefault(click.Group):
    """`shoal conflicts DIR` lists; a directory named like a verb is written `./show`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, "-h", "--help"}:
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_ListsByDefault)
def conflicts() -> None:
    """List, compare and end conflicts: `conflicts [DIR]`, `show PATH`, `resolve PATH`."""


@conflicts.command(name="list")
@directory_argument
@common_options
@click.pass_obj
def list_(invocation: Invocation, directory: Path) -> None:
    """List the files in conflict in DIR and below it, with their copies. This is the default."""
    with invocation.client() as client:
        found = client.conflicts(directory)
    invocation.answer(list(found), *_list_lines(found))


def _list_lines(found: Sequence[ConflictInfo]) -> Iterator[str]:
    if not found:
        yield "no conflicts"
    for conflict in found:
        yield conflict.path
        yield f"  now      {_written(conflict.time, conflict.name)}"
        for copy in conflict.copies:
            yield f"  copy     {_written(copy.time, copy.name)}  {copy.path}"
        if conflict.ancestor is not None:
            yield f"  before   {_written(conflict.ancestor.time, conflict.ancestor.name)}"
    if found:
        yield (
            f"{count_text(len(found), 'file')} in conflict. `shoal conflicts show PATH` compares; "
            "`shoal conflicts resolve PATH --keep mine|theirs|both|FILE` ends it."
        )


def _written(time: str, name: str) -> str:
    return f"{local_time_text(time)}  {name}"


@conflicts.command()
@path_argument
@common_options
@click.pass_obj
def show(invocation: Invocation, path: Path) -> None:
    """Show what each version of PATH changed, compared with the last one that all were made from.

    PATH is the file or one of its conflict copies. Without a common version, each copy is compared
    with the file.
    """
    with invocation.client() as client:
        found = client.conflict(path)
    invocation.answer(found, *_show_lines(found))


def _show_lines(found: ConflictTexts) -> Iterator[str]:
    yield found.path
    for one in found.versions:
        yield f"  {_written(one.version.time, one.version.name)}  {one.version.path}"
    base, others = found.ancestor, found.versions
    if base is not None:
        yield f"  {_written(base.version.time, base.version.name)}  (what they were made from)"
    if base is None or base.text is None:
        base, others = found.versions[0], found.versions[1:]
    for one in others:
        yield ""
        yield from _difference(base, one, ancestor=base is found.ancestor)


def _difference(base: ConflictText, one: ConflictText, *, ancestor: bool) -> Iterator[str]:
    old = "made from" if ancestor else base.version.path
    if base.text is None or one.text is None:
        yield f"{one.version.path}: no text, too large, or not to be had now; nothing to compare"
        return
    lines = difflib.unified_diff(
        base.text.expandtabs(4).splitlines(),
        one.text.expandtabs(4).splitlines(),
        f"{old}  ({_label(base.version)})",
        f"{one.version.path}  ({_label(one.version)})",
        lineterm="",
    )
    yield from lines


def _label(version: ConflictVersion) -> str:
    return f"{version.name}, {local_time_text(version.time)}"


@conflicts.command()
@path_argument
@click.option(
    "--keep", required=True, metavar="mine|theirs|both|FILE",
    help="The version of this device, that of the other one, both, or the content of FILE.",
)  # fmt: skip
@common_options
@click.pass_obj
def resolve(invocation: Invocation, path: Path, keep: str) -> None:
    """End the conflict of PATH, on all devices.

    What is not kept goes to history; `shoal restore` brings it back. With `both`, the copy gets a
    name of its own. FILE is one of the versions, or any other file; write ./mine for one of that
    name.
    """
    named = keep not in {Keep.MINE, Keep.THEIRS, Keep.BOTH}
    with invocation.client() as client:
        result = client.resolve(
            path,
            keep=Keep.FILE if named else Keep(keep),
            file=absolute(keep) if named else None,
        )
    lines = [f"resolved {result.paths[0]}"]
    lines += [f"  and kept {other}" for other in result.paths[1:]]
    if not result.complete:
        lines.append("some of it is still on its way to the disk; `shoal status` says why")
    invocation.answer(result, *lines)
