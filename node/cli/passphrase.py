"""`shoal passphrase`: put this device's key under a passphrase."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from node.cli.common import Invocation, common_options
from node.cli.secrets import asking, passphrase_file_option, read_file

NEW_PROMPT: Final = "New passphrase"


@click.command()
@passphrase_file_option
@click.option("--new-file", type=click.Path(path_type=Path), help="Read the new one from here.")
@click.option("--clear", is_flag=True, help="Keep the key without a passphrase, as at first.")
@common_options
@click.pass_obj
def passphrase(
    invocation: Invocation, passphrase_file: Path | None, new_file: Path | None, clear: bool
) -> None:
    """Put this device's key under a passphrase, or change it; `shoal up` asks for it from then on.

    A node that runs goes on. There is no way around a lost passphrase: the device must then be
    removed and join again.
    """
    if clear and new_file is not None:
        raise click.UsageError("--clear and --new-file exclude each other; nothing was changed")
    # Every other verb starts faster without these.
    from node.home import Home  # noqa: PLC0415
    from node.ports import SystemRandom  # noqa: PLC0415
    from transport.identity import is_sealed, set_passphrase  # noqa: PLC0415

    path = str(Home(invocation.home).identity_path)
    old: Callable[[], str] = asking(passphrase_file)
    if is_sealed(path):
        known = old()  # before the new one is asked for
        old = lambda: known  # noqa: E731
    new = None if clear else read_file(new_file) if new_file is not None else _ask_new()
    identity = set_passphrase(path, SystemRandom().bytes, old, new)
    line = "This device's key is under no passphrase now." if clear else (
        "This device's key is under the passphrase. Do not lose it."
    )  # fmt: skip
    invocation.answer({"device": identity.device.text, "sealed": not clear}, line)


def _ask_new() -> str:
    return asking(None, NEW_PROMPT, confirm=True)()
