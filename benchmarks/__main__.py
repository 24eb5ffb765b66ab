"""Shoal beside what people would use instead: every scenario, every tool, one run.

    python -m benchmarks [--scale N] [--quick] [--only S1,S2] [--tools shoal,rsync] [--out DIR]

Needs root, for network namespaces and mounts. Prints a table; writes JSON and a plot into DIR.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.lab import NotEqualInTimeError, sites
from benchmarks.scenarios import SCENARIOS, Result, Scenario, run
from benchmarks.tools import TOOLS, versions
from tests.support import netns

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> int:
    """Run what was asked for."""
    arguments = _arguments()
    if why := netns.available():
        print(f"cannot measure: {why}", file=sys.stderr)
        return 2
    tools = []
    for name in arguments.tools.split(","):
        if missing := TOOLS[name]().missing():
            print(f"{name} is not installed and left out: {missing}")
        else:
            tools.append(name)
    wanted = set(arguments.only.split(",")) if arguments.only else None
    results: list[Result] = []
    for scenario in SCENARIOS:
        if wanted is not None and scenario.key not in wanted:
            continue
        if arguments.quick and (scenario.idle_s or scenario.receivers > 1):
            continue
        print(f"{scenario.key}  {scenario.title}", flush=True)
        for name in tools:
            if not scenario.tools or name in scenario.tools:
                result = _measure(scenario, name, arguments.scale)
                if result is not None:
                    results.append(result)
                    print(f"    {_line(result)}", flush=True)
    print(_table(results))
    _write(results, arguments.scale, Path(arguments.out))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--scale", type=int, default=1, help="divides sizes and counts")
    parser.add_argument("--quick", action="store_true", help="leave out what takes long")
    parser.add_argument("--only", default="", help="scenarios, by their keys")
    parser.add_argument("--tools", default=",".join(TOOLS), help="which tools")
    parser.add_argument("--out", default=str(RESULTS), help="where results go")
    return parser.parse_args()


def _measure(scenario: Scenario, name: str, scale: int) -> Result | None:
    tool = TOOLS[name]()
    with sites(scenario.receivers + 1) as (lan, places):
        try:
            return run(scenario, tool, lan, places, scale)
        except (NotEqualInTimeError, RuntimeError, TimeoutError, AssertionError) as error:
            print(f"    {name:12} FAILED: {str(error)[:300]}", flush=True)
            return None
        finally:
            tool.stop()


def _line(result: Result) -> str:
    cost, extra = result.cost, "  ".join(f"{k}={v}" for k, v in result.extra.items())
    return (
        f"{result.tool:12} {cost.seconds:8.3f} s  {cost.cpu_s:7.2f} CPU s  "
        f"{_size(cost.wire_bytes):>10}  {_size(cost.peak_memory_bytes):>9}  {extra}"
    )


def _size(size: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def _table(results: list[Result]) -> str:
    """Markdown: seconds / CPU seconds / wire / peak memory, and the ratio of seconds to Shoal's."""
    tools = list(dict.fromkeys(result.tool for result in results))
    by_key = {(result.scenario, result.tool): result for result in results}
    lines = ["| | " + " | ".join(tools) + " |", "|---" * (len(tools) + 1) + "|"]
    for scenario in SCENARIOS:
        if not any((scenario.key, tool) in by_key for tool in tools):
            continue
        cells = [f"{scenario.key} {scenario.title}"]
        ours = by_key.get((scenario.key, "shoal"))
        for tool in tools:
            result = by_key.get((scenario.key, tool))
            if result is None:
                cells.append("–")
                continue
            cost = result.cost
            ratio = ""
            if ours is not None and tool != "shoal" and ours.cost.seconds > 0:
                ratio = f" ({cost.seconds / ours.cost.seconds:.2g} ×)"
            cells.append(
                f"{cost.seconds:.3g} s{ratio} / {cost.cpu_s:.2g} / {_size(cost.wire_bytes)} / "
                f"{_size(cost.peak_memory_bytes)}"
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _write(results: list[Result], scale: int, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    when = datetime.now(UTC)
    record = {
        "date": when.isoformat(timespec="seconds"),
        "scale": scale,
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "load": os.getloadavg(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
        "versions": versions(),
        "results": [dataclasses.asdict(result) for result in results],
    }
    stem = out / f"{when:%Y-%m-%d-%H%M}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(_table(results) + "\n")
    _plot(results, stem.with_suffix(".png"))
    print(f"written: {stem}.json, .md and .png")


def _plot(results: list[Result], path: Path) -> None:
    try:
        import matplotlib as mpl  # noqa: PLC0415 - only here, and no need for anything else
    except ImportError:
        print("no plot: pip install matplotlib")
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    tools = list(dict.fromkeys(result.tool for result in results))
    keys = [one.key for one in SCENARIOS if any(r.scenario == one.key for r in results)]
    figure, axes = plt.subplots(figsize=(1.2 * len(keys) + 2, 5))
    for index, tool in enumerate(tools):
        seconds = {r.scenario: r.cost.seconds for r in results if r.tool == tool}
        places = [
            place + 0.8 * index / len(tools) for place, key in enumerate(keys) if key in seconds
        ]
        heights = [seconds[key] for key in keys if key in seconds]
        axes.bar(places, heights, width=0.8 / len(tools), label=tool, align="edge")
    axes.set_yscale("log")
    axes.set_ylabel("seconds")
    axes.set_xticks([place + 0.4 for place in range(len(keys))], keys)
    axes.legend()
    axes.set_title("Seconds until all folders are the same (less is better)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    print(f"{time.monotonic() - started:.0f} s in all")
    sys.exit(code)
