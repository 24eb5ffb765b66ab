"""Worlds in which a promise was broken once, each shrunk to the few steps that it took."""

from __future__ import annotations

from typing import Final

import pytest

from simulations.script import Act, DeviceSpec, Script, Step
from simulations.world import run_script

PLAIN: Final = (DeviceSpec(), DeviceSpec())
SAVED: Final = Act((Step(0.01, 0, "save", ("a/x.txt", 0.8, 30, True)),))
A_MOMENT: Final = Step(5.0, 0, "heal", (1,))  # so that the faults before it strike

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
    # What the disk had refused to show was looked at again only after an hour.
    "a file that could not be read": Script(
        7,
        PLAIN,
        (
            SAVED,
            Act(
                (
                    Step(0.0, 0, "fail", ("reads", "EIO", 0, 1000, False)),
                    Step(0.05, 0, "edit", (0.0, 0.9, 30, True)),
                    A_MOMENT,
                )
            ),
        ),
    ),
    # The folder stayed stopped although the disk had long recovered.
    "a disk that failed at the start": Script(
        7,
        (DeviceSpec(latency_max_s=0.1), DeviceSpec()),
        (
            SAVED,
            Act(
                (
                    Step(0.1, 0, "stop", (0.5,)),
                    Step(0.5001, 0, "fail", ("syncs", "EIO", 0, 100, False)),
                    A_MOMENT,
                )
            ),
        ),
    ),
    # Neither was moved out of the way any more: each waited for the place of the other.
    "two files that swap places on a disk that fails": Script(
        7,
        PLAIN,
        (
            Act(
                (
                    Step(0.01, 0, "save", ("x.txt", 0.8, 30, True)),
                    Step(0.01, 0, "save", ("y.txt", 0.8, 30, True)),
                )
            ),
            Act(
                (
                    Step(0.0, 1, "fail", ("writes", "EIO", 0, 2, False)),
                    Step(0.05, 0, "swap", (0.0, 0.9, 30, True)),
                    A_MOMENT,
                )
            ),
        ),
    ),
}


@pytest.mark.parametrize("name", WORLDS)
def test_what_was_broken_once_holds(name: str) -> None:
    result = run_script(WORLDS[name])
    assert result.failure is None, "\n".join([*result.trace, str(result.failure)])
