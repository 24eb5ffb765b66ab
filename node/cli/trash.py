"""`shoal trash [DIR]`: what was deleted."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, directory_argument
from node.cli.text import local_time_text, size_text
from node.control.facade import TrashItem


@click.command()
@directory_argument
@common_options
@click.pass_obj
def trash(invocation: Invocation, directory: Path) -> None:
    """List what was deleted in DIR and below it, the newest first.

    `shoal restore PATH` brings it back.
    """
    with invocation.client() as client:
        deleted = client.trash(directory)
    lines = [
        f"{local_time_text(one.time)}  {_what(one):>9}  {one.name}  {one.path}" for one in deleted
    ]
    invocation.answer(deleted, *(lines or ["nothing was deleted"]))


def _what(one: TrashItem) -> str:
    return size_text(one.size) if one.kind == "file" else one.kind
