"""`shoal relay`: run a relay; `add`: use one; `stats`, `check`, `backup`, `restore`: mind one."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crdt.errors import CallerError
from crdt.ids import DeviceId
from node.cli.common import (
    DirectoryType,
    DurationType,
    Invocation,
    common_options,
    directory_argument,
)
from node.cli.exit_codes import DAMAGE_FOUND, OK
from node.cli.text import count_text, size_text
from node.control.client import ControlClient
from node.control.errors import NodeNotRunningError
from node.control.shapes import to_json
from transport.address import Address

if TYPE_CHECKING:
    from node.relay.admin import Admin
    from node.relay.app import RelayReady

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


class SizeType(click.ParamType[int]):
    """Bytes, written as 500M, 20G or 1T."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See click."""
        if isinstance(value, int):
            return value
        text = str(value).upper().removesuffix("B")
        unit = text[-1:] if text[-1:] in set("KMGT") else ""
        number = text.removesuffix(unit) if unit else text
        if not number.isdecimal():
            self.fail(f"'{value}' is no size; write 500M, 20G or 1T", param, ctx)
        return int(number) * _UNITS[unit]


@click.group(invoke_without_command=True)
@click.option("--listen", metavar="HOST:PORT", help="Where members reach it. Default: port 22072.")
@click.option("--policy", type=click.Choice(["open", "token", "owners"]), default="token",
              show_default=True, help="Who may bring folders.")  # fmt: skip
@click.option("--owner", "owners", metavar="DEVICE", multiple=True,
              help="A device that may bring folders (--policy owners); repeatable.")  # fmt: skip
@click.option("--folder-quota", type=SizeType(), help="What one folder may take: 500M, 20G, 1T.")
@click.option("--device-quota", type=SizeType(), help="What one device may deposit in a folder.")
@click.option("--rate", type=SizeType(), help="Bytes of blocks a second, each way, for all.")
@click.option("--connections", type=click.IntRange(1, 100_000), default=1_000, show_default=True,
              help="Connected devices at most.")  # fmt: skip
@click.option("--drop-grace", type=DurationType(), metavar="TIME",
              help="Between members' word that blocks are needed no more and their deletion. "
                   "Default: 7d.")  # fmt: skip
@click.option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics here.")
@click.option("--verbose", is_flag=True, help="Write the relay's log to stderr.")
@common_options
@click.pass_context
def relay(
    context: click.Context,
    /,
    listen: str | None,
    policy: str,
    owners: tuple[str, ...],
    verbose: bool,
    **limits: Any,
) -> None:
    """Run a relay: it keeps sealed copies for devices that are never awake together.

    It can read none of what it keeps. Prints one line when it is ready; runs until Ctrl-C or
    SIGTERM. With --policy token, that line has the token the first time; it lies in the home.
    """
    invocation = context.find_object(Invocation)
    assert invocation is not None
    if context.invoked_subcommand is not None:
        return
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("shoal").setLevel(level)
    from node.relay import app  # noqa: PLC0415 - every other verb starts faster without it
    from node.relay.limits import Limits  # noqa: PLC0415
    from node.relay.policy import PolicyKind  # noqa: PLC0415

    grace_s = limits["drop_grace"]
    given = {
        "folder_size_max": limits["folder_quota"],
        "device_size_max": limits["device_quota"],
        "rate_max": limits["rate"],
        "connections_max": limits["connections"],
        "drop_grace_s": None if grace_s is None else int(grace_s),
    }
    metrics = limits["metrics"]
    options = app.RelayOptions(
        home=invocation.home,
        listen=app.DEFAULT_LISTEN if listen is None else Address.from_text(listen),
        policy=PolicyKind(policy),
        owners=frozenset(_device(text) for text in owners),
        limits=Limits(**{name: value for name, value in given.items() if value is not None}),
        metrics=None if metrics is None else Address.from_text(metrics),
    )
    app.run_relay(options, lambda ready: _say_ready(invocation, ready))


def _say_ready(invocation: Invocation, ready: RelayReady) -> None:
    value = {
        "ready": True,
        "device": ready.device,
        "listening": ready.listening,
        "policy": ready.policy,
        **({"token": ready.token} if ready.token else {}),
    }
    token = f"  token {ready.token}" if ready.token else ""
    line = f"ready: relay  device {ready.device[:7]}  listening on {ready.listening}"
    invocation.answer(value, f"{line}  policy {ready.policy}{token}")


def _device(text: str) -> DeviceId:
    try:
        return DeviceId.from_text(text)
    except ValueError as error:
        raise CallerError(f"--owner: {error}") from None


@relay.command()
@click.argument("address", metavar="HOST:PORT")
@directory_argument
@click.option("--token", default="", help="The relay's token, if it takes folders by token.")
@common_options
@click.pass_obj
def add(invocation: Invocation, address: str, directory: Path, token: str) -> None:
    """Let the relay at HOST:PORT keep the folder that DIR is in, sealed.

    All members use it from then on. Only an owner of the folder can do this.
    """
    where = Address.from_text(address)
    with invocation.client() as client:
        device = client.add_relay(directory, address=str(where), token=token)
    invocation.answer(
        {"relay": device, "address": str(where)},
        f"the relay {device[:7]} at {where} keeps this folder now, sealed; it cannot read it",
    )


@relay.command()
@common_options
@click.pass_obj
def stats(invocation: Invocation) -> None:
    """Show what the relay that runs with this home keeps and has counted."""
    with ControlClient(invocation.home) as client:
        found = client.relay_stats()
    if invocation.json:
        click.echo(json.dumps(found))
        return
    click.echo(f"relay {found['device'][:7]}, {found['counters']['connections']} connected")
    for one in found["folders"]:
        click.echo(
            f"  {one['folder'][:16]}  {count_text(one['members'], 'member')}, "
            f"{one['connected']} connected, {count_text(one['entries'], 'record')}, "
            f"{count_text(one['blocks'], 'block')}, "
            f"{size_text(one['entry_bytes'] + one['block_bytes'])}"
        )


@relay.command()
@common_options
@click.pass_obj
def check(invocation: Invocation) -> int:
    """Read everything that the relay with this home keeps, running or stopped.

    A damaged block is forgotten, and brought again by members that have it. Exit code 5 when
    anything was damaged.
    """
    found = _ask(invocation, lambda client: client.relay_check(), lambda admin: admin.check())
    lines = [
        f"checked {count_text(found['folders'], 'folder')}, "
        f"{count_text(found['entries'], 'record')}, {count_text(found['blocks'], 'block')}, "
        f"{size_text(found['bytes'])}"
    ]
    lines += [
        f"damaged, and forgotten: block {one['block'][:16]} of {one['folder'][:16]}"
        for one in found["damaged_blocks"]
    ]
    if found["damaged_blocks"]:
        lines.append("members that have these blocks bring them again")
    for one in found["damaged_entries"]:
        where = f"record {one['seq']} of device {one['device'][:7]} of {one['folder'][:16]}"
        lines.append(f"DAMAGED: {where}")
    if found["damaged_entries"]:
        lines.append(
            "devices keep what they have, and refuse these records. Stop the relay and restore a "
            "backup, or move relay.sqlite and packs away: members fill a new one."
        )
    invocation.answer(found, *lines)
    return DAMAGE_FOUND if found["damaged_blocks"] or found["damaged_entries"] else OK


@relay.command()
@click.argument("directory", metavar="BACKUP", type=DirectoryType())
@common_options
@click.pass_obj
def backup(invocation: Invocation, directory: Path) -> None:
    """Copy the relay with this home to the directory BACKUP, while it runs or stopped.

    Again to the same directory, only what is new is copied. A backup holds the relay's key.
    """
    found = _ask(
        invocation,
        lambda client: client.relay_backup(directory),
        lambda admin: admin.back_up(directory),
    )
    invocation.answer(
        found,
        f"backed up to {found['directory']}: {size_text(found['size'])} of blocks, "
        f"{size_text(found['copied'])} of them copied now",
    )


@relay.command()
@click.argument("directory", metavar="BACKUP", type=DirectoryType())
@common_options
@click.pass_obj
def restore(invocation: Invocation, directory: Path) -> None:
    """Make a relay's home (--home) from the backup in BACKUP.

    Members notice that it is older than what they have seen, and bring what is missing.
    """
    from node.relay.backup import restore as copy_back  # noqa: PLC0415 - as above

    found = to_json(copy_back(directory, invocation.home))
    invocation.answer(
        found,
        f"restored {size_text(found['size'])} of blocks to {found['directory']}. Start it with "
        "`shoal relay`; members bring what is newer.",
    )


def _ask(
    invocation: Invocation,
    running: Callable[[ControlClient], dict[str, Any]],
    stopped: Callable[[Admin], Awaitable[object]],
) -> dict[str, Any]:
    """Ask the relay that runs with this home, or do it to one that does not."""
    try:
        client = ControlClient(invocation.home)
    except NodeNotRunningError:
        from node.relay.admin import with_stopped_relay  # noqa: PLC0415 - as above

        answer: dict[str, Any] = to_json(with_stopped_relay(invocation.home, stopped))
        return answer
    with client:
        return running(client)
