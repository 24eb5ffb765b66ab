"""The short form of `make fuzz`, and that fuzzing can find anything at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.fuzz.__main__ import run_child
from tests.fuzz.child import Found, corpus, examine, forget_peak, fuzz
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.valid import CORPUS

SEED = int(os.environ.get("SHOAL_FUZZ_SEED", "1"))


def test_every_target_has_a_corpus_and_the_other_way_round() -> None:
    assert {path.name for path in CORPUS.iterdir()} == {name.replace(" ", "-") for name in TARGETS}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_what_is_valid_stays_valid(name: str) -> None:
    """The corpus is as old as its file: whoever changes a format sees it here."""
    assert all(examine(TARGETS[name], data) for data in corpus(name))


@pytest.mark.slow
def test_hostile_inputs_of_every_kind_do_no_harm() -> None:
    report = run_child(SEED, 3.0, list(TARGETS))
    assert "found" not in report, report
    read = report["read"]
    assert isinstance(read, dict)
    assert read.keys() == TARGETS.keys()
    assert min(read.values()) > 20


def test_a_seed_gives_the_same_inputs_again() -> None:
    def inputs() -> list[tuple[str, bytes]]:
        noted: list[tuple[str, bytes]] = []
        fuzz(["slot", "frame"], 7, lambda: len(noted) > 40, lambda *one: noted.append(one))
        return noted

    assert inputs() == inputs()


def crash(_data: bytes) -> None:
    raise KeyError("a bug")


def hang(_data: bytes) -> None:
    end = time.process_time() + 0.06
    while time.process_time() < end:
        pass


def hoard(_data: bytes) -> None:
    assert bytearray(b"x") * (40 * 2**20)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("read", "what"), [(crash, "KeyError"), (hang, "processor time"), (hoard, "of memory")]
)
def test_what_breaks_a_promise_is_found(read: object, what: str) -> None:
    forget_peak()
    with pytest.raises(Found, match=what):
        examine(Target(read, (ValueError,)), b"")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_child_that_dies_tells_what_killed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'tests.fuzz.child' in sys.orig_argv:\n"
        "    import crdt.invitation as module\n"
        "    read = module.Invitation.from_text\n"
        "    def dying(text, count=[0]):\n"
        "        count[0] += 1\n"
        "        if count[0] > 50: os.abort()\n"
        "        return read(text)\n"
        "    module.Invitation.from_text = dying\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    report = run_child(1, 5.0, ["invitation"])
    assert report["target"] == "invitation"
    assert report["input"]
    assert "ended the process (-6)" in str(report["found"])
