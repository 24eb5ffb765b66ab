"""The process that reads hostile inputs. Its death, or its silence, is a finding like any other.

Each input is written to the scratch file that the parent named before it is read, so that the
parent knows what killed it. Limits: 50 ms of processor time an input (a slow one is run again, to
rule out the machine), and 16 MB of memory above what the process had.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import resource
import sys
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.valid import CORPUS

CPU_MAX_S: Final = 0.05
MEMORY_MAX: Final = 16 * 1024 * 1024  # bytes
RERUNS: Final = 3
POOL_MAX: Final = 64  # accepted mutants kept a target, to go on from
FORGET_PEAK_EVERY: Final = 64  # inputs
HARD_LIMIT: Final = 1 << 30  # bytes of address space beyond what the start took


class Found(Exception):  # noqa: N818 - no error of ours, but of what is tested
    """What is wrong with an input."""


def examine(target: Target, data: bytes) -> bool:
    """Whether the input is accepted. Raises Found when it breaks a promise."""
    before_rss, before = _peak_bytes(), time.process_time()
    accepted = _read(target, data)
    took_s = time.process_time() - before
    if (
        took_s > CPU_MAX_S
        and (took_s := min(_time(target, data) for _ in range(RERUNS))) > CPU_MAX_S
    ):
        raise Found(f"takes {took_s * 1000:.0f} ms of processor time")
    if _peak_bytes() - before_rss > MEMORY_MAX and (size := _memory(target, data)) > MEMORY_MAX:
        raise Found(f"takes {size / 2**20:.0f} MiB of memory")
    return accepted


def _read(target: Target, data: bytes) -> bool:
    try:
        target.read(data)
    except target.refusals:
        return False
    except BaseException as error:
        raise Found("".join(traceback.format_exception(error)[-4:])) from error
    return True


def _time(target: Target, data: bytes) -> float:
    before = time.process_time()
    _read(target, data)
    return time.process_time() - before


def _memory(target: Target, data: bytes) -> int:
    """The most that one run takes, in bytes: Python's own count, or the kernel's where larger."""
    gc.collect()
    forget_peak()
    before = _peak_bytes()
    _read(target, data)
    grown = _peak_bytes() - before
    tracemalloc.start()
    _read(target, data)
    _, traced = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return max(grown, traced)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> None:
    """From now on the peak is counted from what the process has now."""
    try:
        with open("/proc/self/clear_refs", "w") as handle:
            handle.write("5")
    except OSError:
        pass  # no Linux: large allocations below an earlier peak go unseen


def fuzz(
    names: list[str], seed: int, deadline: Callable[[], bool], note: Callable[[str, bytes], None]
) -> tuple[Counter[str], Counter[str]]:
    """Read mutants of the corpus in turn until the deadline; how many were read and accepted."""
    random = Random(seed)
    pools = {name: corpus(name) for name in names}
    everything = [data for pool in pools.values() for data in pool]
    read: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    while not deadline():
        for name in names:
            target, pool = TARGETS[name], pools[name]
            data = mutate(random, random.choice(pool), everything, target.packed)
            if not read.total() % FORGET_PEAK_EVERY:
                forget_peak()
            note(name, data)
            read[name] += 1
            if examine(target, data):
                accepted[name] += 1
                if len(pool) < POOL_MAX:
                    pool.append(data)
    return read, accepted


def corpus(name: str) -> list[bytes]:
    """The valid inputs of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / name.replace(" ", "-")).iterdir())]


def main(scratch: str, seed: int, seconds: float, names: list[str]) -> int:
    """Fuzz, and print a line of JSON; on a finding also what it is."""
    for name in names:  # what is made once is no input's cost
        for data in corpus(name):
            _read(TARGETS[name], data)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + HARD_LIMIT, used + HARD_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    last = ("", b"")

    def note(name: str, data: bytes) -> None:
        nonlocal last
        last = (name, data)
        os.pwrite(
            descriptor,
            len(head := json.dumps([name, len(data)]).encode()).to_bytes(4) + head + data,
            0,
        )

    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT, 0o600)
    end = time.monotonic() + seconds
    try:
        read, accepted = fuzz(names, seed, lambda: time.monotonic() >= end, note)
    except Found as found:
        print(json.dumps({"target": last[0], "input": last[1].hex(), "found": str(found)}))
        return 1
    print(json.dumps({"read": read, "accepted": accepted}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]))
