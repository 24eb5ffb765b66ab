"""`shoal select PATH`: which directories live on this device."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, path_argument
from node.cli.text import count_text
from node.control.facade import SelectionInfo

SHOWN_MAX = 20  # paths that are listed for people


@click.command()
@path_argument
@click.option("--off", is_flag=True, help="PATH shall not live on this device any more.")
@click.option("--on", is_flag=True, help="PATH shall live on this device again.")
@common_options
@click.pass_obj
def select(invocation: Invocation, path: Path, *, off: bool, on: bool) -> None:
    """Choose which directories live on this device; with neither option, list what does not.

    With --off the directory PATH stays on all other devices, and its files leave this one: each as
    soon as another device is known to keep it. With --on it comes back.
    """
    if on and off:
        raise click.UsageError("--on and --off exclude each other; nothing was changed")
    lives_here = True if on else False if off else None
    with invocation.client() as client:
        info = client.people(SelectionInfo, "select", path, lives_here=lives_here)
    lines = [f"not on this device: {one}" for one in info.unselected] or ["All of it lives here."]
    if info.waiting:
        count = count_text(len(info.waiting), "path")
        lines.append(f"{count} in it, until another device is known to keep them:")
        lines += [f"  {one}" for one in info.waiting[:SHOWN_MAX]]
    invocation.answer(info, *lines)
