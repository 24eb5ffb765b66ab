"""`python -m tests.fuzz SECONDS [SEED]` fuzzes every target on all cores; `corpus` writes
the corpus.

Each core runs children (`tests.fuzz.child`), one after another, each with a seed of its own. One
that dies, or is silent for longer than any input may take, is a finding as well as one that reports
something. A finding is printed with the line that repeats it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.fuzz.targets import TARGETS
from tests.fuzz.valid import write_corpus

CHILD_S: Final = 20.0  # a child's life: memory that leaks shows, and one seed repeats it soon
GRACE_S: Final = 30.0  # for its start, and for a machine that is busy


def run_child(seed: int, seconds: float, names: list[str]) -> dict[str, object]:
    """What one child did: {"read", "accepted"}, or {"target", "input", "found"}."""
    with tempfile.TemporaryDirectory(prefix="shoal-fuzz-") as directory:
        scratch = Path(directory) / "input"
        command = [sys.executable, "-m", "tests.fuzz.child", str(scratch), str(seed), str(seconds)]
        try:
            done = subprocess.run(
                [*command, *names],
                capture_output=True,
                text=True,
                timeout=seconds + GRACE_S,
                check=False,
                env={**os.environ, "TMPDIR": directory},
            )
        except subprocess.TimeoutExpired:
            return _killed_by(scratch, "hangs")
        try:
            report = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            return _killed_by(
                scratch, f"ended the process ({done.returncode}): {done.stderr[-800:]}"
            )
        assert isinstance(report, dict)
        return report


def _killed_by(scratch: Path, why: str) -> dict[str, object]:
    data = scratch.read_bytes() if scratch.exists() else b""
    if not data:
        return {"target": "", "input": "", "found": f"the child did not start: {why}"}
    end = 4 + int.from_bytes(data[:4])
    name, size = json.loads(data[4:end])
    return {"target": name, "input": data[end : end + size].hex(), "found": why}


def run(seconds: float, seed: int, names: list[str], workers: int) -> int:
    """Fuzz for `seconds`, on `workers` cores; the exit code."""
    end = time.monotonic() + seconds
    read: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    findings: dict[str, dict[str, object]] = {}
    seeds = iter(range(seed, seed + 10**9))

    def reports() -> Iterator[tuple[int, dict[str, object]]]:
        while (left := end - time.monotonic()) > 0:
            mine = next(seeds)
            yield mine, run_child(mine, min(left, CHILD_S), names)

    def work() -> None:
        for mine, report in reports():
            if "found" in report:
                key = f"{report['target']}: {str(report['found']).strip().splitlines()[-1]}"
                findings.setdefault(key, {**report, "seed": mine})
            else:
                read.update(report["read"])  # type: ignore[call-overload]
                accepted.update(report["accepted"])  # type: ignore[call-overload]

    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(work) for _ in range(workers)]:
            future.result()
    for name in names:
        print(f"{name:20} {read[name]:>10,} inputs  {accepted[name]:>9,} accepted")
    print(f"{'in all':20} {read.total():>10,} inputs  {accepted.total():>9,} accepted")
    for key, finding in findings.items():
        print(
            f"\nFOUND, seed {finding['seed']}: {key}\n{finding['found']}\ninput: {finding['input']}"
        )
    print(f"\n{len(findings)} findings; seeds from {seed}, {seconds:.0f} s on {workers} cores")
    return 1 if findings else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["corpus"]:
        write_corpus()
        sys.exit(0)
    first = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() // 10**6
    sys.exit(run(float(sys.argv[1]), first, sys.argv[3:] or list(TARGETS), os.cpu_count() or 1))
