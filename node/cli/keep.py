"""`shoal keep [DIR]`: how much history a folder keeps on this device."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import DurationType, Invocation, common_options, directory_argument
from node.cli.text import count_text, parse_size, size_text, span_text


class SizeType(click.ParamType[int]):
    """Bytes, written as 500MB or 10GB."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """See click."""
        try:
            return value if isinstance(value, int) else parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@directory_argument
@click.option("--all", "all_s", type=DurationType(), help="Keep every version so long, as 30d.")
@click.option("--daily", "daily_s", type=DurationType(), help="Then one a day so long, as 365d.")
@click.option("--percent", type=click.FloatRange(0, 10_000), help="Of the folder's size, at most,")
@click.option("--size", type=SizeType(), help="or this much, whichever is larger, as 10GB.")
@common_options
@click.pass_obj
def keep(
    invocation: Invocation,
    directory: Path,
    all_s: float | None,
    daily_s: float | None,
    percent: float | None,
    size: int | None,
) -> None:
    """Show or set how much history the folder that DIR is in keeps on this device."""
    changes = {
        "all_s": None if all_s is None else int(all_s),
        "daily_s": None if daily_s is None else int(daily_s),
        "share": None if percent is None else percent / 100,
        "size": size,
    }
    with invocation.client() as client:
        result = client.keep(directory, **changes)
    invocation.answer(
        result,
        f"every version for {span_text(result.all_s)}, then one a day up to "
        f"{span_text(result.daily_s)}",
        f"at most {result.share:.0%} of the folder or {size_text(result.size)}, whichever is "
        f"larger: {size_text(result.limit)}",
        f"kept now: {count_text(result.versions, 'version')}, {size_text(result.used)}",
    )
