"""`shoal events`: what happens, as it happens."""

from __future__ import annotations

from typing import Any

import click

from node.cli.common import Invocation, common_options
from node.cli.log import deed_line
from node.control.facade import Event
from node.control.shapes import to_json

TOLD = ("deed", "warning")


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on until the node stops.")
@common_options
@click.pass_obj
def events(invocation: Invocation, follow: bool) -> None:
    """Print what happens in this node's folders from now on: one event a line.

    Without --follow, the first one. `shoal log` has what happened before. A line on stderr says
    when it listens.
    """
    with invocation.client() as client:
        for event in client.events(lambda: click.echo("listening", err=True)):
            if event.kind in TOLD:
                invocation.answer(_value(event), _line(event))
                if not follow:
                    return


def _value(event: Event) -> dict[str, Any]:
    """What is known of an event, in one object: a deed's facts beside the kind and the folder."""
    value: dict[str, Any] = to_json(event)
    value |= value.pop("deed", {})
    return {name: one for name, one in value.items() if one != "" or name == "path"}


def _line(event: Event) -> str:
    if event.deed is not None:
        return deed_line(event.deed)
    return f"! {event.path}: {event.text}" if event.path else f"! {event.text}"
