"""Worlds in which a promise was broken once, each shrunk to the few steps that it took."""

from __future__ import annotations

from typing import Final

import pytest

from simulations.script import Act, DeviceSpec, Script, Step
from simulations.world import run_script

PLAIN: Final = (DeviceSpec(), DeviceSpec())

WORLDS: Final = {
    # The folder was "in sync" although what the disk had refused to sync was not sent yet.
    "a scan whose fsync failed": Script(
        7,
        PLAIN,
        (
            Act((Step(0.01, 1, "save", ("b/c/m.bin", 0.8, 0, False)),)),
            Act(
                (
                    Step(0.0, 0, "fail", ("syncs", "ENOSPC", 0, 3, False)),
                    Step(0.15, 0, "copy", (0.15, 0.82, 20_000, False)),
                )
            ),
        ),
        delay_s=0.001,
    ),
}


@pytest.mark.parametrize("name", WORLDS)
def test_what_was_broken_once_holds(name: str) -> None:
    result = run_script(WORLDS[name])
    assert result.failure is None, "\n".join([*result.trace, str(result.failure)])
