"""`shoal hook [DIR]`: a command to run for what others do."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, directory_argument


@click.command()
@directory_argument
@click.option("--set", "command", metavar="COMMAND", help="Run this for whatever others do.")
@click.option("--clear", is_flag=True, help="Run nothing any more.")
@common_options
@click.pass_obj
def hook(invocation: Invocation, directory: Path, command: str | None, clear: bool) -> None:
    """Show or set the command that this node runs for what other devices do.

    It finds SHOAL_ACTION, SHOAL_PATH, SHOAL_NAME, SHOAL_DEVICE, SHOAL_ABOUT and SHOAL_FOLDER in its
    environment; no shell reads it. For a desktop notification, a script of two lines:
    notify-send "$SHOAL_NAME $SHOAL_ACTION" "$SHOAL_PATH"
    """
    if clear and command is not None:
        raise click.UsageError("give --set or --clear, not both")
    with invocation.client() as client:
        wanted = "" if clear else command
        current = client.people(str, "hook", directory, command=wanted)
    invocation.answer({"command": current}, current or "No command is run.")
