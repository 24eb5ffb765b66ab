"""`shoal wait [DIR]`: return when enough devices hold the current state."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, directory_argument
from node.cli.exit_codes import OK, TIMED_OUT
from node.cli.text import count_text
from node.control.facade import DEVICES_MAX, TIMEOUT_MAX_S


@click.command()
@directory_argument
@click.option(
    "--devices",
    "wanted",
    type=click.IntRange(1, DEVICES_MAX),
    default=2,
    show_default=True,
    help="How many devices, this one included.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, TIMEOUT_MAX_S),
    default=60.0,
    show_default=True,
    help="Seconds.",
)
@common_options
@click.pass_obj
def wait(invocation: Invocation, directory: Path, wanted: int, timeout_s: float) -> int:
    """Wait until the current state of the folder that DIR is in lies on several devices' disks."""
    with invocation.client() as client:
        result = client.wait(directory, devices=wanted, timeout_s=timeout_s)
    holding = count_text(result.devices, "device")
    if result.reached:
        invocation.answer(result, f"{holding} hold{'s' * (result.devices == 1)} the current state")
        return OK
    invocation.answer(result)
    click.echo(
        f"shoal: after {timeout_s:g} s, {holding} of {wanted} hold the current state. Nothing is "
        "lost; it goes on. `shoal status` says what waits and why.",
        err=True,
    )
    return TIMED_OUT
