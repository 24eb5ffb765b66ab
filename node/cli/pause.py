"""`shoal pause [DIR]`: stop scanning, writing and exchanging, until `shoal resume`."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, directory_argument


@click.command()
@directory_argument
@common_options
@click.pass_obj
def pause(invocation: Invocation, directory: Path) -> None:
    """Pause the folder that DIR is in; remembered over restarts."""
    with invocation.client() as client:
        client.pause(directory)
    invocation.answer({}, "paused; `shoal resume` goes on")
