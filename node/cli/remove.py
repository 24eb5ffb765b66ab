"""`shoal remove DEVICE [DIR]`: take a device out of the folder, for good."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, directory_argument
from node.control.facade import DeviceInfo


@click.command()
@click.argument("device")
@directory_argument
@common_options
@click.pass_obj
def remove(invocation: Invocation, device: str, directory: Path) -> None:
    """Remove DEVICE (a name, or the start of an id) from the folder that DIR is in, for good.

    It keeps what it has, gets nothing that is written from now on, and cannot write any more.
    """
    with invocation.client() as client:
        removed = client.people(DeviceInfo, "remove", directory, device=device)
    invocation.answer(
        {"removed": removed},
        f"Removed {removed.name}. What is written from now on is under a new key; what it wrote "
        "until now stays.",
    )
