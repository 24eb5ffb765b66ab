"""`shoal revoke INVITATION [DIR]`: take an invitation back."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, directory_argument
from node.control.facade import InvitationInfo


@click.command()
@click.argument("invitation")
@directory_argument
@common_options
@click.pass_obj
def revoke(invocation: Invocation, invitation: str, directory: Path) -> None:
    """Take an invitation back, given by its id (see `shoal invitations`) or its text.

    Whoever came by it stays; what is written from now on is under a new key.
    """
    with invocation.client() as client:
        revoked = client.people(InvitationInfo, "revoke", directory, invitation=invitation)
    invocation.answer({"revoked": revoked}, f"The invitation {revoked.id} works no more.")
