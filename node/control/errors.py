"""Errors of the control API, and how an error crosses it: its text and exit code arrive unchanged.

{"error": "CallerError", "message": "...", "exit_code": 2}
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from crdt.errors import CallerError, ShoalError, WorldError


class NodeNotRunningError(CallerError):
    """There is nobody to ask."""

    exit_code = 3


class NodeTooSlowError(WorldError):
    """The node runs, but it did not answer in time."""

    exit_code = 31


class ForwardedError(ShoalError):
    """What the node raised, raised again where it was asked."""

    def __init__(self, name: str, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.name = name
        self.forwarded_exit_code = exit_code


def exit_code_of(error: ShoalError) -> int:
    """The exit code that `error` asks for."""
    return error.forwarded_exit_code if isinstance(error, ForwardedError) else error.exit_code


def name_of(error: ShoalError) -> str:
    """The class of `error` where it was first raised."""
    return error.name if isinstance(error, ForwardedError) else type(error).__name__


def intended(error: BaseException) -> ShoalError | None:
    """The `ShoalError` to report for `error`, which a nursery may have wrapped in groups.

    None if there is a bug anywhere in it: that must not hide behind an error raised on purpose.
    """
    leaves = list(itertools.islice(_leaves(error), 100))
    purposeful = [leaf for leaf in leaves if isinstance(leaf, ShoalError)]
    return purposeful[0] if purposeful and len(purposeful) == len(leaves) else None


def to_message(error: ShoalError) -> dict[str, object]:
    """The JSON object that stands for `error`."""
    return {
        "error": name_of(error),
        "message": str(error),
        "exit_code": exit_code_of(error),
    }


def from_message(data: object) -> ForwardedError:
    """Read `to_message`; what has another shape becomes an error that says so."""
    match data:
        case {"error": str(name), "message": str(message), "exit_code": int(code)}:
            return ForwardedError(name, message, code)
        case _:
            return ForwardedError("ShoalError", "the node answered with something unknown", 1)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
