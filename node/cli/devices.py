"""`shoal devices [DIR]`: the folder's roster."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, directory_argument
from node.cli.text import count_text, local_time_text
from node.control.facade import DeviceInfo
from node.control.shapes import to_json


@click.command()
@directory_argument
@common_options
@click.pass_obj
def devices(invocation: Invocation, directory: Path) -> None:
    """List the devices of the folder that DIR is in: who, as what, last seen when, how far behind.

    With --json, what is not known is null.
    """
    with invocation.client() as client:
        found = client.devices(directory)
    width = max((len(device.name) for device in found), default=0)
    lines = [_line(device, width) for device in found]
    nothing = {"last_seen": None, "behind": None}
    invocation.answer([{**nothing, **to_json(device)} for device in found], *lines)


def _line(device: DeviceInfo, width: int) -> str:
    where = "connected" if device.connected else "not connected"
    if device.this_device:
        where = "this device"
    elif not device.connected and device.last_seen is not None:
        where = f"last seen {local_time_text(device.last_seen)}"
    behind = "never seen" if device.behind is None else count_text(device.behind, "change")
    state = "up to date" if device.behind == 0 else f"{behind} behind" if device.behind else behind
    return f"{device.name:<{width}}  {device.role:<6}  {where:<29}  {state:<18}  {device.device}"
