"""What the verbs share: the invocation, the options that all have, and where output goes.

Answers go to stdout, everything else (errors, warnings, progress) to stderr. With `--json`, stdout
holds exactly one JSON value a line, an error's as well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click
import platformdirs

from crdt.errors import CallerError
from node.cli.text import parse_duration, printable
from node.control.client import ControlClient
from node.control.shapes import dumps

F = TypeVar("F", bound=Callable[..., Any])


def default_home() -> Path:
    """The platform's place for state."""
    return platformdirs.user_state_path("shoal")


@dataclass
class Invocation:
    """One call of the CLI; each verb gets it by `@click.pass_obj`."""

    home: Path = field(default_factory=default_home)
    json: bool = False

    def client(self) -> ControlClient:
        """The node that runs with this home.

        Raises:
            NodeNotRunningError: none does.
        """
        return ControlClient(self.home)

    def answer(self, value: object, *lines: str) -> None:
        """Print `value` with `--json`, else `lines`."""
        if self.json:
            click.echo(dumps(value))
        else:
            for line in lines:
                click.echo(printable(line))


def absolute(path: str) -> Path:
    """`path` from here, symlinks followed, whether or not there is anything.

    Raises:
        CallerError: the directory that we are in is gone, or the path is none.
    """
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        raise CallerError(f"cannot find out which directory '{path}' is: {error}") from None


class DirectoryType(click.ParamType[Path]):
    """A directory, made absolute; the node looks whether it is one."""

    name = "dir"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """See click."""
        return value if isinstance(value, Path) else absolute(os.fsdecode(value))


class PathType(click.ParamType[Path]):
    """A path whose last part need not exist, and is not followed if it is a symlink."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """See click."""
        if isinstance(value, Path):
            return value
        text = os.fsdecode(value).rstrip("/") or "/"
        if Path(text).name in {"", ".", ".."}:
            return absolute(text)
        return absolute(str(Path(text).parent)) / Path(text).name


class DurationType(click.ParamType[float]):
    """Seconds, written as 30s, 10m, 12h or 1d."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """See click."""
        try:
            return value if isinstance(value, float) else parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def directory_argument(function: F) -> F:
    """`[DIR]`: any directory in a synced folder; where we are by default."""
    decorate = click.argument("directory", metavar="[DIR]", default=".", type=DirectoryType())
    return decorate(function)


def path_argument(function: F) -> F:
    """`PATH`: a file or directory in a synced folder, whether or not it is there now."""
    return click.argument("path", metavar="PATH", type=PathType())(function)


def common_options(function: F) -> F:
    """`--json` and `--home`, which every verb has."""
    json_option = click.option(
        "--json", is_flag=True, expose_value=False, is_eager=True, callback=_set_json,
        help="Print JSON on stdout.",
    )  # fmt: skip
    return home_option(json_option(function))


def home_option(function: F) -> F:
    """`--home DIR`, before the verb or after it."""
    decorate = click.option(
        "--home", type=DirectoryType(), envvar="SHOAL_HOME", expose_value=False, callback=_set_home,
        help="Where this device keeps its identity, index and socket.",
    )  # fmt: skip
    return decorate(function)


def is_terminal(descriptor: int) -> bool:
    """Whether a person looks at stdout (1) or stderr (2)."""
    stream = sys.stdout if descriptor == 1 else sys.stderr
    return stream is not None and stream.isatty()


def _set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Invocation).json = True


def _set_home(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    # The verb's own option would otherwise undo the global one with the environment's.
    source = ctx.get_parameter_source("home")
    first = ctx.parent is None
    if value is not None and (first or source is click.core.ParameterSource.COMMANDLINE):
        ctx.ensure_object(Invocation).home = value
