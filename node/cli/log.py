"""`shoal log [PATH]`: who did what."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, PathType, common_options
from node.cli.text import local_time_text
from node.control.facade import DEEDS_DEFAULT, DEEDS_MAX, DeedInfo


@click.command()
@click.argument("path", metavar="[PATH]", default=".", type=PathType())
@click.option(
    "--limit", "-n", type=click.IntRange(1, DEEDS_MAX), default=DEEDS_DEFAULT,
    show_default=True, help="How many, at most.",
)  # fmt: skip
@common_options
@click.pass_obj
def log(invocation: Invocation, path: Path, limit: int) -> None:
    """Tell who created, edited, moved, deleted and shared what at PATH, the newest first.

    It comes from signed entries: nobody can write in another device's name.
    """
    with invocation.client() as client:
        found = client.people(tuple[DeedInfo, ...], "log", path, limit=limit)
    invocation.answer(found, *map(deed_line, found))


def deed_line(deed: DeedInfo) -> str:
    """One deed for people."""
    what = f"{deed.action} {deed.path}".strip()
    was = f" (was {deed.was})" if deed.was else ""
    about = f" {deed.about}" if deed.about else ""
    return f"{local_time_text(deed.time)}  {deed.name}  {what}{was}{about}"
