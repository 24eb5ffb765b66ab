"""Worlds stand up to their checkers, and a seed is a world, in any process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from simulations.script import make_script
from simulations.world import run_script

SEEDS = 60  # what fits into a few seconds; `make simulate` takes more


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, SEEDS, 10))
def test_seeds_keep_every_promise(first: int) -> None:
    for seed in range(first, first + 10):
        result = run_script(make_script(seed))
        assert result.failure is None, f"seed {seed}: {result.failure}"


def digests(seeds: range, hash_seed: str) -> list[str]:
    program = (
        "from simulations.script import make_script; from simulations.world import run_script\n"
        f"for seed in {seeds!r}: print(run_script(make_script(seed)).digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.split()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trace_in_other_processes() -> None:
    seeds = range(2, 8)
    one = digests(seeds, "1")
    assert len(set(one)) == len(seeds), "different seeds are different worlds"
    assert digests(seeds, "2") == one
