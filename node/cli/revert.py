"""`shoal revert PATH`: throw away what was changed on a device that may only read."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, path_argument
from node.cli.text import count_text
from node.control.facade import LocalInfo

SHOWN_MAX = 20  # paths that are listed for people


@click.command()
@path_argument
@common_options
@click.pass_obj
def revert(invocation: Invocation, path: Path) -> None:
    """Throw away the local changes at PATH and below it, on a device that may only read.

    What they replaced comes back; what is thrown away stays in this device's history for a time.
    """
    with invocation.client() as client:
        reverted = client.people(tuple[LocalInfo, ...], "revert", path)
    lines = [f"{one.action} here, thrown away: {one.path}" for one in reverted[:SHOWN_MAX]]
    if len(reverted) > SHOWN_MAX:
        lines.append(f"and {count_text(len(reverted) - SHOWN_MAX, 'more path')}")
    invocation.answer({"reverted": reverted}, *lines)
