"""`make mutants`: does the simulation find faults? Each is planted in a process of its own.

Seeds are tried in order until a world fails. A fault that no world finds fails the run, and so does
one whose place in the program is no more.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from types import CodeType, ModuleType

import click

from simulations.planted import FAULTS, Change, Fault


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with other text in some places, past the cache of compiled ones."""

    def __init__(self, name: str, path: str, changes: Sequence[Change]) -> None:
        super().__init__(name, path)
        self._changes = changes

    def get_code(self, fullname: str) -> CodeType:
        """Compile the changed source."""
        source = self.get_data(self.path).decode()
        for change in self._changes:
            if source.count(change.old) != 1:
                raise SystemExit(f"not found just once in {change.module}:\n{change.old}")
            source = source.replace(change.old, change.new)
        return compile(source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that a fault changes."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `MetaPathFinder`."""
        changes = [change for change in self._fault.changes if change.module == fullname]
        if not changes:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            raise SystemExit(f"there is no module {fullname} any more")
        loader = _Loader(fullname, spec.origin, changes)
        return importlib.util.spec_from_file_location(fullname, spec.origin, loader=loader)


def plant(fault: Fault) -> None:
    """Change the program, in this process, for all that is imported from now on."""
    early = sorted({change.module for change in fault.changes} & sys.modules.keys())
    assert not early, f"{early} were imported before they could be changed"
    sys.meta_path.insert(0, _Finder(fault))


def hunt(fault: Fault, seeds: int) -> tuple[str, int, str, float]:
    """Run worlds until one fails.

    Returns: the fault's name; the seed, 0 if none failed; what failed; and seconds.
    """
    name = fault.name
    began = time.monotonic()
    plant(fault)
    from simulations.script import make_script  # noqa: PLC0415 - imports the changed program
    from simulations.world import run_script  # noqa: PLC0415

    for change in fault.changes:
        importlib.import_module(change.module)
    for seed in range(1, seeds + 1):
        failure = run_script(make_script(seed)).failure
        if failure is not None:
            return name, seed, str(failure), time.monotonic() - began
    return name, 0, f"not found in {seeds} worlds", time.monotonic() - began


def _hunt(work: tuple[Fault, int]) -> tuple[str, int, str, float]:
    try:
        return hunt(*work)
    except SystemExit as error:
        return work[0].name, 0, str(error), 0.0


def run(faults: Sequence[Fault], jobs: int, seeds: int | None = None) -> int:
    """Hunt for each, and print what found it; returns how many were not found."""
    missed = 0
    work = [(fault, seeds or fault.seeds) for fault in faults]
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        for name, seed, what, seconds in pool.imap_unordered(_hunt, work):
            missed += not seed
            verdict = f"caught at seed {seed}" if seed else "NOT CAUGHT"
            click.echo(f"{name}: {verdict} ({seconds:.0f} s): {what[:150]}")
    click.echo(f"{len(work) - missed} of {len(work)} planted faults were caught")
    return missed


@click.command()
@click.option("--only", help="Faults whose name holds this.")
@click.option("--seeds", type=int, help="How many worlds each may take; else what its table says.")
@click.option("--jobs", default=os.cpu_count() or 1, help="Processes at once.")
def main(only: str | None, seeds: int | None, jobs: int) -> None:
    """Plant each fault and look for it; exits with 1 when one was not found."""
    faults = [fault for fault in FAULTS if only is None or only in fault.name]
    raise SystemExit(run(faults, jobs, seeds) > 0)
