"""What people do to a source tree, and what must come of what two of them did apart."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from tests.support.trees import Tree, contents


def conflicts_by_anna(a: Path) -> None:
    replace(a / "glob.py", "edited by anna\n")  # ben edits it too
    (a / "graphlib.py").unlink()  # ben edits it
    (a / "inspect.py").rename(a / "inspect-anna.py")  # ben renames it too
    replace(a / "keyword.py", "edited by anna\n")  # ben renames it
    (a / "linecache.py").unlink()  # ben renames it
    (a / "made").mkdir()  # ben makes it too
    (a / "made/anna.txt").write_text("anna\n")
    (a / "kind").write_text("a file by anna\n")  # ben makes a directory
    (a / "logging").rename(a / "multiprocessing/logging")  # ben moves them the other way round
    shutil.rmtree(a / "pydoc_data")  # ben makes a file in it
    (a / "turtledemo").rename(a / "turtledemo-anna")  # ben makes a file in it
    (a / "nturl2path.py").unlink()  # ben edits it
    (a / "nturl2path.py").mkdir()
    (a / "nturl2path.py/inside.txt").write_text("anna\n")


def conflicts_by_ben(b: Path) -> None:
    replace(b / "glob.py", "edited by ben\n")
    replace(b / "graphlib.py", "edited by ben, deleted by anna\n")
    (b / "inspect.py").rename(b / "inspect-ben.py")
    (b / "keyword.py").rename(b / "keyword-ben.py")
    (b / "linecache.py").rename(b / "linecache-ben.py")
    (b / "made").mkdir()
    (b / "made/ben.txt").write_text("ben\n")
    (b / "kind").mkdir()
    (b / "kind/ben.txt").write_text("in a directory by ben\n")
    (b / "multiprocessing").rename(b / "logging/multiprocessing")
    (b / "pydoc_data/new.txt").write_text("made by ben in what anna deleted\n")
    (b / "turtledemo/new.txt").write_text("made by ben in what anna renamed\n")
    replace(b / "nturl2path.py", "edited by ben, replaced by anna\n")


def check_conflicts(tree: Tree, root: Path) -> None:
    """What the table of DESIGN section 4 says, and nothing lost."""
    texts = contents(root)
    for text in (
        "edited by anna\n",
        "edited by ben\n",
        "edited by ben, deleted by anna\n",
        "a file by anna\n",
        "in a directory by ben\n",
        "made by ben in what anna deleted\n",
        "made by ben in what anna renamed\n",
        "edited by ben, replaced by anna\n",
    ):
        assert text.encode() in texts, f"lost: {text}"
    python = root / "python"
    assert (python / "graphlib.py").read_text() == "edited by ben, deleted by anna\n"
    assert (python / "keyword-ben.py").read_text() == "edited by anna\n"
    assert "python/linecache-ben.py" in tree
    assert "python/linecache.py" not in tree
    assert ("python/inspect-anna.py" in tree) != ("python/inspect-ben.py" in tree)
    assert {"python/made/anna.txt", "python/made/ben.txt"} <= tree.keys()
    assert (python / "kind/ben.txt").read_text() == "in a directory by ben\n"
    assert len(list(python.glob("kind (conflict *"))) == 1
    assert len(list(python.glob("glob (conflict *.py"))) == 1
    assert "python/pydoc_data/new.txt" in tree
    assert "python/pydoc_data/topics.py" not in tree
    assert "python/turtledemo-anna/new.txt" in tree
    assert "python/turtledemo" not in tree
    assert (python / "nturl2path.py/inside.txt").read_text() == "anna\n"
    for module in ("logging/config.py", "multiprocessing/pool.py"):
        assert [path for path in tree if path.endswith(module)], f"lost in the cycle: {module}"


def copy_standard_library(target: Path, *, without: Iterable[str] = ()) -> None:
    """Python's own sources and tests, as installed, but for these names."""
    source = sysconfig.get_paths()["stdlib"]
    ignored = shutil.ignore_patterns("__pycache__", "site-packages", "dist-packages", *without)
    shutil.copytree(source, target, symlinks=True, ignore=ignored)


def replace(path: Path, text: str) -> None:
    """Save as editors do: whole, under another name first."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def patch(path: Path, place: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)


def write_random(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for _ in range(size // 1_000_000):
            file.write(os.urandom(1_000_000))
