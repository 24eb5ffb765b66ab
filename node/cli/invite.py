"""`shoal invite [DIR]`: an invitation for another device, as text and as a QR code."""

from __future__ import annotations

import io
from pathlib import Path

import click
import segno

from node.cli.common import (
    DurationType,
    Invocation,
    common_options,
    directory_argument,
    is_terminal,
)
from node.cli.text import count_text, span_text
from node.control.facade import EXPIRES_DEFAULT_S, USES_DEFAULT, USES_MAX, Role


@click.command()
@directory_argument
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    default="editor",
    show_default=True,
    help="What the new device may do.",
)
@click.option(
    "--uses",
    type=click.IntRange(1, USES_MAX),
    default=USES_DEFAULT,
    show_default=True,
    help="How many devices may join with it.",
)
@click.option("--expires", "expires_s", type=DurationType(), default=EXPIRES_DEFAULT_S,
              help="How long it works: 10m, 12h, 7d. Default: 1d.")  # fmt: skip
@click.option(
    "--spoken",
    is_flag=True,
    help="Three words to say, for a device on the same network: one guess, 10 min.",
)
@common_options
@click.pass_obj
def invite(
    invocation: Invocation, directory: Path, role: str, uses: int, expires_s: float, spoken: bool
) -> None:
    """Print an invitation to the folder that DIR is in. Treat it like a password.

    Where stdout is no terminal, the invitation stands alone on the first line.
    """
    with invocation.client() as client:
        if spoken:
            code = client.people(str, "say", directory, role=role)
            invocation.answer({"code": code, "role": role, "uses": 1, "expires_s": 600}, code)
            if is_terminal(1) and not invocation.json:
                click.echo("It works once, for 10 minutes, and is void after a wrong guess.")
                click.echo("On the other device:  shoal join THE-THREE-WORDS DIR")
            return
        text = client.invite(directory, role=Role(role), uses=uses, expires_s=expires_s)
    value = {"invitation": text, "role": role, "uses": uses, "expires_s": expires_s}
    invocation.answer(value, text)
    if is_terminal(1) and not invocation.json:
        click.echo(_qr(text))
        works = "once" if uses == 1 else f"for {count_text(uses, 'device')}"
        click.echo(f"It works {works}, for {span_text(expires_s)}. On the other device:")
        click.echo("  shoal join INVITATION DIR")


def _qr(text: str) -> str:
    # Upper case keeps the code in its alphanumeric mode: a third smaller.
    out = io.StringIO()
    segno.make_qr(text.upper(), error="l").terminal(out, compact=True)
    return out.getvalue()
