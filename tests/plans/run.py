"""`python -m tests.plans SECONDS [SEED]`: as many triples and histories as fit, on all cores."""

from __future__ import annotations

import multiprocessing
import os
import time
from functools import partial
from random import Random

from tests.plans.model import history, triple

TRIPLES_AT_ONCE = 20  # to one history, which takes about as long


def run(seed: int, seconds: float) -> tuple[int, int, int, str]:
    """Triples, histories, items planned in them, and what failed."""
    end, triples, histories, planned = time.monotonic() + seconds, 0, 0, 0
    while time.monotonic() < end:
        mine = f"{seed}:{histories}"
        random = Random(mine)
        try:
            for _ in range(TRIPLES_AT_ONCE):
                triple(random)
            planned += history(random)
        except Exception as error:
            return triples, histories, planned, f"seed {mine}: {type(error).__name__}: {error}"
        triples += TRIPLES_AT_ONCE
        histories += 1
    return triples, histories, planned, ""


def main(seconds: float, seed: int) -> int:
    """Run on all cores and print the sums."""
    cores = os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        done = pool.map(partial(run, seconds=seconds), range(seed, seed + cores))
    triples, histories, planned = (
        sum(sums) for sums in zip(*(one[:3] for one in done), strict=True)
    )
    rate = (triples + planned) * 60 / seconds
    print(f"{triples:,} triples, {histories:,} histories with {planned:,} planned items")
    print(f"{rate:,.0f} plans a minute on {cores} cores; seeds from {seed}")
    for *_, failure in done:
        if failure:
            print(f"FAILED, {failure}")
    return 1 if any(one[3] for one in done) else 0
