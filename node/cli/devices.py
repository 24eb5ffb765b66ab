"""`shoal devices [DIR]`: the folder's roster."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, directory_argument


@click.command()
@directory_argument
@common_options
@click.pass_obj
def devices(invocation: Invocation, directory: Path) -> None:
    """List the devices of the folder that DIR is in."""
    with invocation.client() as client:
        found = client.devices(directory)
    width = max((len(device.name) for device in found), default=0)
    lines = []
    for device in found:
        where = "connected" if device.connected else "not connected"
        where = "this device" if device.this_device else where
        lines.append(f"{device.name:<{width}}  {device.role:<6}  {where:<13}  {device.device}")
    invocation.answer({"devices": found}, *lines)
