"""The error family: every error says whose fault it was, and the CLI's exit code follows from it.

Bugs of our own stay `AssertionError`; everything raised on purpose is a `ShoalError`.
"""

from __future__ import annotations

from typing import ClassVar


class ShoalError(Exception):
    """Base of every error raised on purpose. The text is written for the person who reads it."""

    exit_code: ClassVar[int] = 1


class CallerError(ShoalError):
    """The person or program that called us asked for something that cannot be done."""

    exit_code = 2


class PeerError(ShoalError):
    """The remote node broke the protocol. Drop it; keep running."""

    exit_code = 10


class IntegrityError(ShoalError):
    """Stored or received bytes do not match their address, seal or signature."""

    exit_code = 20


class WorldError(ShoalError):
    """The machine refused: disk full, permission denied, port in use. Wait or fix, then retry."""

    exit_code = 30
