"""The short form of `make mutants`: every planted fault fits the program, and some are found."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from simulations.mutants import plant, run
from simulations.planted import FAULTS, Change, Fault

FOUND_SOON = {  # in the first world or two
    "signatures are not checked",
    "a removal is ignored",
}


def test_every_planted_fault_fits_the_program() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20
    for fault in FAULTS:
        assert fault.changes
        for change in fault.changes:
            spec = importlib.util.find_spec(change.module)
            assert spec is not None
            assert spec.origin is not None
            source = Path(spec.origin).read_text()
            assert source.count(change.old) == 1, f"{fault.name}: {change.old}"
            compile(source.replace(change.old, change.new), change.module, "exec")


@pytest.mark.slow
def test_some_planted_faults_are_found_soon() -> None:
    assert run([fault for fault in FAULTS if fault.name in FOUND_SOON], jobs=1) == 0


@pytest.mark.slow
def test_a_fault_that_breaks_nothing_is_not_found() -> None:
    harmless = Fault("nothing", "none", (Change("crdt.heads", "def heads(", "def heads("),))
    gone = Fault("gone", "none", (Change("crdt.heads", "no such text", ""),))
    assert run([harmless, gone], jobs=1, seeds=1) == 2


def test_what_was_imported_already_cannot_be_changed() -> None:
    before = list(sys.meta_path)
    with pytest.raises(AssertionError, match="imported before"):
        plant(Fault("late", "none", (Change(__name__, "a", "b"),)))
    assert sys.meta_path == before
