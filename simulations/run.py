"""`make simulate`: many worlds on all cores, or one with its trace and, if it fails, its story."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from typing import Final

import click

from simulations.script import Script, make_script
from simulations.shrink import shrink, story
from simulations.world import Result, run_script

WORLDS_A_PROCESS: Final = 250  # then a fresh one: whatever a world leaves behind is bounded
FAULTS: Final = ("kill", "stop", "cut", "split", "oneway", "delay", "fail", "deaf", "jump")


def run_seed(seed: int) -> Result:
    """One world; its trace stays in this process."""
    result = run_script(make_script(seed))
    result.trace = []
    return result


def run_seeds(seeds: range, jobs: int) -> Iterator[Result]:
    """Worlds in any order."""
    if jobs <= 1:
        yield from map(run_seed, seeds)
        return
    with get_context("spawn").Pool(jobs, maxtasksperchild=WORLDS_A_PROCESS) as pool:
        yield from pool.imap_unordered(run_seed, seeds)


@click.command()
@click.option("--seeds", default=200, help="How many worlds.")
@click.option("--first", default=1, help="The first of their seeds.")
@click.option("--seed", type=int, help="Only this one, with its trace.")
@click.option("--jobs", default=os.cpu_count() or 1, help="Processes at once.")
def main(seeds: int, first: int, seed: int | None, jobs: int) -> None:
    """Run simulated worlds; exits with 1 when a promise was broken in one of them."""
    if seed is not None:
        raise SystemExit(replay(make_script(seed)))
    began = time.monotonic()
    total: Counter[str] = Counter()
    simulated_s, failed = 0.0, 0
    for result in run_seeds(range(first, first + seeds), jobs):
        total += result.counts
        simulated_s += result.simulated_s
        if result.failure is not None:
            failed += 1
            click.echo(f"seed {result.seed}: {result.failure}")
    took_s = time.monotonic() - began
    click.echo(summary(seeds, failed, total, simulated_s, took_s))
    raise SystemExit(int(failed > 0))


def summary(seeds: int, failed: int, total: Counter[str], simulated_s: float, took_s: float) -> str:
    """What was done, for people."""
    faults = ", ".join(f"{name} {total[name]}" for name in FAULTS)
    return (
        f"{seeds} seeds, {failed} failed; {took_s:.0f} s, {simulated_s / 3600:.1f} hours in there, "
        f"{total['actions']} actions of people\n"
        f"kills {total['kill']}, power cuts {total['power']}, failed operations "
        f"{total['failed operations']}; faults: {faults}\n"
        f"bytes lost: {total['bytes lost']} (and {total['bytes cut']} that were never synced, "
        "gone in power cuts)"
    )


def replay(script: Script) -> int:
    """Run one world in front of people; shrink it when it fails."""
    result = run_script(script)
    click.echo("\n".join(result.trace))
    if result.failure is None:
        click.echo(f"seed {script.seed}: fine; trace {result.digest}")
        return 0
    click.echo(f"seed {script.seed}: {result.failure}; trace {result.digest}; shrinking")
    smallest = shrink(script, result.failure.check)
    click.echo(story(smallest))
    return 1
