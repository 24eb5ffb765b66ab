"""What `up` and `join` share: the options of a node, and how it shows what it does."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from crdt.errors import CallerError
from crdt.roster_ops import check_device_name
from node.cli.common import Invocation
from node.cli.secrets import asking, passphrase_file_option
from node.control.options import UpOptions
from transport.address import Address

F = TypeVar("F", bound=Callable[..., Any])


def node_options(function: F) -> F:
    """The options that `up` and `join` have in common."""
    options = [
        passphrase_file_option,
        click.option("--listen", metavar="HOST:PORT", help="Listen here and nowhere else."),
        click.option("--peer", "peers", metavar="HOST:PORT", multiple=True,
                     help="Where another device can be reached; may be repeated."),
        click.option("--no-lan", is_flag=True,
                     help="Neither announce this node on the local network nor look for others."),
        click.option("--no-merge", is_flag=True,
                     help="Never merge texts in this folder: writes `*` to its .shoalnomerge."),
        click.option("--name", help="This device's name, for people. Default: its host name."),
        click.option("--verbose", is_flag=True, help="Write the node's log to stderr."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def up_options(
    invocation: Invocation,
    directory: Path,
    *,
    listen: str | None,
    peers: tuple[str, ...],
    no_lan: bool,
    no_merge: bool,
    name: str | None,
    verbose: bool,
    passphrase_file: Path | None,
) -> UpOptions:
    """Check what was given on the command line.

    Raises:
        CallerError: an address or the name is none.
    """
    if verbose:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("shoal").setLevel(logging.INFO)
    return UpOptions(
        home=invocation.home,
        directory=directory,
        name=_name(name),
        listen=None if listen is None else Address.from_text(listen),
        peers=tuple(_peer(text) for text in peers),
        lan=not no_lan,
        no_merge=no_merge,
        passphrase=asking(passphrase_file),
    )


def _peer(text: str) -> Address:
    address = Address.from_text(text)
    if address.port == 0:
        raise CallerError(f"'{text}' has port 0, where nobody can be reached")
    return address


def _name(given: str | None) -> str:
    name = platform.node().partition(".")[0] if given is None else given
    try:
        check_device_name(name)
    except ValueError as error:
        if given is None:
            return "device"
        raise CallerError(f"--name: {error}") from None
    return name
