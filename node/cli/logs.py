"""`shoal logs`: the newest lines of the running node's log, and those to come."""

from __future__ import annotations

import click

from node.cli.common import Invocation, common_options
from node.control.facade import LINES_MAX


@click.command()
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(1, LINES_MAX),
    default=100,
    show_default=True,
    help="How many lines.",
)
@click.option("--follow", "-f", is_flag=True, help="Go on with new lines until the node stops.")
@common_options
@click.pass_obj
def logs(invocation: Invocation, lines: int, follow: bool) -> None:
    """Print the newest lines of the node's log."""
    with invocation.client() as client:
        found = client.logs(lines)
        invocation.answer({"lines": found}, *found)
        for event in client.events() if follow else ():
            if event.kind == "log":
                invocation.answer({"lines": [event.text]}, event.text)
