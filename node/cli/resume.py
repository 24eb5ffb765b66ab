"""`shoal resume [DIR]`: go on after `shoal pause`."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, directory_argument


@click.command()
@directory_argument
@common_options
@click.pass_obj
def resume(invocation: Invocation, directory: Path) -> None:
    """Resume the folder that DIR is in."""
    with invocation.client() as client:
        client.resume(directory)
    invocation.answer({}, "resumed")
