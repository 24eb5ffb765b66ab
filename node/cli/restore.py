"""`shoal restore PATH`: bring a version back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from node.cli.common import Invocation, PathType, common_options, path_argument
from node.cli.text import count_text, parse_time

SHOWN_MAX = 20  # paths of a directory that are listed for people


class MomentType(click.ParamType[int]):
    """A moment as `node.cli.text.parse_time` reads it, in milliseconds since 1970."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """See click."""
        try:
            now_s = datetime.now(UTC).timestamp()
            return value if isinstance(value, int) else parse_time(str(value), now_s)
        except (ValueError, OverflowError) as error:
            self.fail(str(error), param, ctx)


@click.command()
@path_argument
@click.option("--version", help="Which one, as `shoal history` shows it.")
@click.option(
    "--at", "at_ms", type=MomentType(), help="As of when: 2026-11-21 14:30, or 2h for 2 hours ago."
)
@click.option("--to", type=PathType(), help="Where to put it instead, within the folder.")
@common_options
@click.pass_obj
def restore(
    invocation: Invocation, path: Path, version: str | None, at_ms: int | None, to: Path | None
) -> None:
    """Bring back the file PATH, or the directory PATH as of a time.

    Without --version and --at: what was deleted, or the version before the present one. A restore
    is a new version, so it can be undone by another one. What came into a directory later stays.
    """
    if version is not None and at_ms is not None:
        raise click.UsageError("name --version or --at, not both")
    with invocation.client() as client:
        result = client.restore(path, version=version, at_ms=at_ms, to=to)
    if not result.paths:
        lines = ["it is as it was then already; nothing was changed"]
    elif len(result.paths) == 1:
        lines = [f"restored {result.paths[0]}"]
    else:
        lines = [f"restored {count_text(len(result.paths), 'item')}:"]
        lines += [f"  {one}" for one in result.paths[:SHOWN_MAX]]
        if len(result.paths) > SHOWN_MAX:
            lines.append(f"  and {len(result.paths) - SHOWN_MAX:,} more")
    if not result.complete:
        lines.append("some of it is still on its way to the disk; `shoal status` says why")
    invocation.answer(result, *lines)
