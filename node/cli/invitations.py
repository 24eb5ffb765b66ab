"""`shoal invitations [DIR]`: which invitations are open."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, directory_argument
from node.cli.text import count_text, local_time_text
from node.control.facade import InvitationInfo

OPEN = "open"


@click.command()
@directory_argument
@click.option("--all", "everything", is_flag=True, help="Also those that are over.")
@common_options
@click.pass_obj
def invitations(invocation: Invocation, directory: Path, everything: bool) -> None:
    """List the open invitations to the folder that DIR is in; `shoal revoke ID` takes one back."""
    with invocation.client() as client:
        found = client.people(tuple[InvitationInfo, ...], "invitations", directory)
    shown = [one for one in found if everything or one.state == OPEN]
    lines = [_line(one) for one in shown] or ["No invitation is open."]
    invocation.answer(shown, *lines)


def _line(one: InvitationInfo) -> str:
    uses = f"{one.left} of {count_text(one.uses, 'use')} left"
    what = f"until {local_time_text(one.expires)}" if one.state == OPEN else one.state
    who = f", joined: {', '.join(one.joined)}" if one.joined else ""
    return f"{one.id}  {one.role:<6}  {uses:<17}  {what}, by {one.issued_by}{who}"
