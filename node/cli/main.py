"""The `shoal` command: one module a verb, and errors as a clear message with an exit code.

A bug is no clear message: it shows its traceback, and exits with 1.
"""

from __future__ import annotations

import sys
from typing import Final

import click

from crdt.errors import ShoalError
from node.cli import (
    conflicts,
    devices,
    events,
    exit_codes,
    history,
    hook,
    invitations,
    invite,
    join,
    keep,
    log,
    logs,
    passphrase,
    pause,
    recovery,
    relay,
    remove,
    restore,
    resume,
    revert,
    revoke,
    role,
    select,
    status,
    trash,
    up,
    verify,
    wait,
)
from node.cli.common import Invocation, home_option
from node.cli.text import printable
from node.control.errors import exit_code_of, intended, to_message
from node.control.shapes import dumps

VERBS: Final = (
    up.up,
    join.join,
    invite.invite,
    status.status,
    devices.devices,
    role.role,
    remove.remove,
    invitations.invitations,
    revoke.revoke,
    recovery.recovery,
    wait.wait,
    verify.verify,
    log.log,
    events.events,
    history.history,
    restore.restore,
    revert.revert,
    select.select,
    trash.trash,
    conflicts.conflicts,
    keep.keep,
    passphrase.passphrase,
    pause.pause,
    resume.resume,
    hook.hook,
    logs.logs,
    relay.relay,
)


class _InOrder(click.Group):
    """Lists the verbs in the order in which a person meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        import importlib.metadata  # noqa: PLC0415 - every verb starts faster without it

        try:
            version = importlib.metadata.version("shoal")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        click.echo(f"shoal {version}")
        ctx.exit()


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@home_option
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version,
    help="Show the version and exit.",
)  # fmt: skip
def cli() -> None:
    """Keep a folder the same on all your devices, with no cloud in between."""


for verb in VERBS:
    cli.add_command(verb)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    invocation = Invocation()
    try:
        code = cli.main(arguments, prog_name="shoal", standalone_mode=False, obj=invocation)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return exit_codes.INTERRUPTED
    except Exception as error:
        purposeful = intended(error)
        if purposeful is None:
            raise
        return _show(purposeful, invocation)
    return code if isinstance(code, int) else exit_codes.OK


def _show(error: ShoalError, invocation: Invocation) -> int:
    if invocation.json:
        click.echo(dumps(to_message(error)))
    lines = "\n".join(printable(line) for line in str(error).splitlines())
    click.echo(f"shoal: {lines}", err=True)
    return exit_code_of(error)


if __name__ == "__main__":
    main()
