"""`shoal recovery [DIR]`: a phrase on paper that lets an owner back in."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, directory_argument, is_terminal


@click.command()
@directory_argument
@common_options
@click.pass_obj
def recovery(invocation: Invocation, directory: Path) -> None:
    """Print a recovery phrase for the folder that DIR is in: 24 words to keep on paper.

    Should all devices of an owner be lost, `shoal join "THE WORDS" DIR --peer HOST:PORT` makes a
    new one an owner, by any other member or a relay. Whoever has the words can do that: lock them
    away.
    Each call makes another phrase; `shoal invitations` lists them, `shoal revoke` takes one back.
    """
    with invocation.client() as client:
        phrase = client.people(str, "recovery", directory)
    words = phrase.split()
    invocation.answer({"phrase": phrase}, phrase)
    if is_terminal(1) and not invocation.json:
        click.echo()
        for row in range(0, len(words), 6):
            numbered = (f"{n:>2} {word:<9}" for n, word in enumerate(words[row : row + 6], row + 1))
            click.echo("  ".join(numbered))
