"""`shoal join INVITATION DIR`: join a folder of another device, then run as `shoal up` does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import click

from node.cli.common import DirectoryType, Invocation, common_options
from node.cli.running import node_options, up_options
from node.control.options import JoinOptions

LINE_SIZE_MAX: Final = 16 * 1024  # characters read from stdin; no invitation is near that


@click.command()
@node_options
@common_options
@click.argument("invitation")
@click.argument("directory", metavar="DIR", type=DirectoryType())
@click.pass_obj
def join(invocation: Invocation, /, invitation: str, directory: Path, **options: Any) -> None:
    """Join the folder that INVITATION is for, and keep it in DIR.

    `-` reads the invitation from the first line of stdin, so that other users of this machine
    cannot see it in the list of processes.
    """
    if invitation == "-":
        invitation = sys.stdin.readline(LINE_SIZE_MAX)
    # Every other verb starts faster without a node.
    from node import app  # noqa: PLC0415
    from node.cli.report import reporter  # noqa: PLC0415

    checked = JoinOptions(invitation, up_options(invocation, directory, **options))

    with reporter(invocation) as report:
        app.run_join(checked, report)
