"""`shoal up [DIR]`: create or resume the folder, and run the node in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.cli.common import Invocation, common_options, directory_argument
from node.cli.running import node_options, up_options


@click.command()
@directory_argument
@node_options
@common_options
@click.pass_obj
def up(invocation: Invocation, /, directory: Path, **options: Any) -> None:
    """Keep DIR in sync; run until stopped by Ctrl-C or SIGTERM.

    Creates the folder on first use. Prints one line when it is ready.
    """
    checked = up_options(invocation, directory, **options)
    # Every other verb starts faster without a node.
    from node import app  # noqa: PLC0415
    from node.cli.report import reporter  # noqa: PLC0415

    with reporter(invocation) as report:
        app.run_up(checked, report)
