"""Where a passphrase comes from: a file that somebody named, or a person at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from crdt.errors import CallerError

F = TypeVar("F", bound=Callable[..., Any])

FILE_SIZE_MAX = 4096  # characters


def passphrase_file_option(function: F) -> F:
    """`--passphrase-file FILE`, for where nobody can be asked."""
    decorate = click.option(
        "--passphrase-file", type=click.Path(path_type=Path), envvar="SHOAL_PASSPHRASE_FILE",
        help="The passphrase of this device's key is this file's first line.",
    )  # fmt: skip
    return decorate(function)


def asking(
    file: Path | None, prompt: str = "Passphrase of this device's key", *, confirm: bool = False
) -> Callable[[], str]:
    """What gives the passphrase, when it is called: from `file`, or else from a person.

    Raises, when called:
        PassphraseError: there is neither a file nor a terminal.
        CallerError: the file cannot be read.
    """

    def ask() -> str:
        if file is not None:
            return read_file(file)
        if not sys.stdin.isatty():
            from transport.identity import nobody_to_ask  # noqa: PLC0415 - costs a start

            return nobody_to_ask()
        found: str = click.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
        return found

    return ask


def read_file(path: Path) -> str:
    """The first line of a file, without its end.

    Raises:
        CallerError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline(FILE_SIZE_MAX).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise CallerError(
            f"the passphrase file {path} cannot be read ({why}); nothing was changed"
        ) from None
