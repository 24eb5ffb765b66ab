"""`shoal verify [DIR]`: read and check everything, mend from peers."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import Invocation, common_options, directory_argument
from node.cli.exit_codes import DAMAGE_FOUND, OK
from node.cli.text import count_text, size_text


@click.command()
@directory_argument
@common_options
@click.pass_obj
def verify(invocation: Invocation, directory: Path) -> int:
    """Read every file of the folder that DIR is in, and mend what is damaged."""
    with invocation.client() as client:
        result = client.verify(directory)
    lines = [f"checked {count_text(result.checked, 'file')}, {size_text(result.bytes)}"]
    for damage in result.details:
        outcome = "mended" if damage.repaired else "NOT mended"
        lines.append(f"{outcome}: {damage.path}: {damage.message}")
    invocation.answer(result, *lines)
    return OK if set(result.damaged) <= set(result.repaired) else DAMAGE_FOUND
