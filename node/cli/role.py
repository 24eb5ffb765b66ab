"""`shoal role DEVICE ROLE [DIR]`: what a device may do."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, directory_argument
from node.control.facade import DeviceInfo


@click.command()
@click.argument("device")
@click.argument("role")
@directory_argument
@click.option(
    "--may-invite/--may-not-invite",
    "may_invite",
    default=None,
    help="Let it invite others, as its own role or a narrower one.",
)
@common_options
@click.pass_obj
def role(
    invocation: Invocation, device: str, role: str, directory: Path, may_invite: bool | None
) -> None:
    """Make DEVICE (a name, or the start of an id) an owner, editor or reader.

    Owners invite, remove and change roles. What a device writes after it was made a reader has no
    effect on other devices.
    """
    with invocation.client() as client:
        changed = client.people(
            DeviceInfo, "role", directory, device=device, role=role, may_invite=may_invite
        )
    also = ", and may invite others" if changed.may_invite and changed.role != "owner" else ""
    invocation.answer(changed, f"{changed.name} is {changed.role} now{also}.")
