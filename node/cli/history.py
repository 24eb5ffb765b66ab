"""`shoal history PATH`: the versions of a file."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, path_argument
from node.cli.text import count_text, local_time_text, size_text
from node.control.facade import VersionInfo


@click.command()
@path_argument
@common_options
@click.pass_obj
def history(invocation: Invocation, path: Path) -> None:
    """List the versions of the file PATH, deleted or not, the newest first.

    What is marked "not available" lies on no device that is connected now.
    """
    with invocation.client() as client:
        result = client.history(path)
    width = max(len(one.version) for one in result.versions)
    lines = [_line(one, width) for one in result.versions]
    away = sum(not one.available for one in result.versions)
    if away:
        lines.append(
            f"{count_text(away, 'version')} not available here or from a connected device; others "
            "may have them"
        )
    invocation.answer(result, *lines)


def _line(one: VersionInfo, width: int) -> str:
    what = "deleted" if one.deleted else size_text(one.size)
    marks = [
        mark
        for mark, holds in (("current", one.current), ("not available", not one.available))
        if holds
    ]
    line = f"{one.version:<{width}}  {local_time_text(one.time)}  {what:>9}  {one.name}"
    return f"{line}  ({', '.join(marks)})" if marks else line
