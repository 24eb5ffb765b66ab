"""History through the real program: versions, restores, trash, and what a device away has."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from node.cli.text import parse_time
from node.control.client import ControlClient
from node.control.errors import ForwardedError
from node.control.shapes import to_json
from tests.support.processes import Device, two_members
from tests.support.trees import snapshot, wait_for, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CANNOT_BE_DONE = 2
MACHINE_REFUSED = 30
CHANCE = random.Random(11)
LARGE = CHANCE.randbytes(400_000)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Device, Device]]:
    """Two members; each test has a directory of its own, and leaves both running and in sync."""
    with two_members(tmp_path_factory.mktemp("history")) as (anna, ben):
        yield anna, ben


def write(devices: tuple[Device, Device], path: str, *contents: bytes) -> None:
    """Write the contents on the first device, each after the one before is everywhere."""
    for content in contents:
        put(devices[0], path, content)
        devices[0].wait(devices=2)


def put(device: Device, path: str, content: bytes) -> None:
    """Save a file in one step, so that nobody sees an empty version of it."""
    file, coming = device.directory / path, device.home.parent / "coming"
    file.parent.mkdir(parents=True, exist_ok=True)
    coming.write_bytes(content)
    coming.replace(file)


def history(device: Device, path: str) -> list[dict[str, Any]]:
    """As `shoal history --json`, without a Python for every question."""
    with ControlClient(device.home) as client:
        answer = to_json(client.history(device.directory / path))
    assert answer["path"] == path
    versions = answer["versions"]
    assert all(
        {"version", "time", "device", "size", "deleted", "available"} <= one.keys()
        for one in versions
    )
    return list(versions)


def restore(
    device: Device,
    path: str,
    *,
    version: str | None = None,
    at: str | None = None,
    to: Path | None = None,
) -> list[str]:
    """As `shoal restore`; returns what was restored."""
    at_ms = None if at is None else parse_time(at, 0)
    with ControlClient(device.home) as client:
        done = client.restore(device.directory / path, version=version, at_ms=at_ms, to=to)
    assert done.complete
    return list(done.paths)


def trash(device: Device, path: str) -> list[dict[str, Any]]:
    """As `shoal trash --json`."""
    with ControlClient(device.home) as client:
        return list(to_json(client.trash(device.directory / path)))


def test_the_versions_of_a_file(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    began = datetime.now(UTC)
    write(pair, "versions/f", b"1", b"22", LARGE, LARGE + b"more")
    put(ben, "versions/f", b"by ben")
    ben.wait(devices=2)
    devices = {device.status()["name"]: device.status()["device"] for device in pair}
    for device in pair:
        versions = history(device, "versions/f")
        assert [one["size"] for one in versions] == [6, len(LARGE) + 4, len(LARGE), 2, 1]
        assert [one["device"] for one in versions] == [devices["ben"]] + [devices["anna"]] * 4
        assert all(one["available"] for one in versions)
        assert not any(one["deleted"] for one in versions)
        times = [datetime.fromisoformat(one["time"]) for one in versions]
        assert times == sorted(times, reverse=True)
        assert began.replace(microsecond=0) <= times[-1]
        assert times[0] <= datetime.now(UTC)
    assert history(anna, "versions/f") == history(ben, "versions/f")
    printed = ben.run_json("history", str(ben.directory / "versions/f"))
    assert printed == {"path": "versions/f", "versions": history(ben, "versions/f")}


def test_a_restore_goes_everywhere_and_is_undone_by_another(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    write(pair, "restore/f", LARGE, b"second")
    second, first = (one["version"] for one in history(ben, "restore/f"))
    path = str(ben.directory / "restore/f")
    assert ben.run_json("restore", path, "--version", first) == {
        "paths": ["restore/f"],
        "complete": True,
    }
    assert (ben.directory / "restore/f").read_bytes() == LARGE
    ben.wait(devices=2)
    assert (anna.directory / "restore/f").read_bytes() == LARGE
    restore(anna, "restore/f", version=second)
    anna.wait(devices=2)
    assert (ben.directory / "restore/f").read_bytes() == b"second"
    assert len(history(anna, "restore/f")) == 4


def test_a_deleted_file_is_in_the_trash_and_comes_back(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    write(pair, "trash/sub/f", LARGE)
    (anna.directory / "trash/sub/f").unlink()
    (anna.directory / "trash/sub").rmdir()
    anna.wait(devices=2)
    for device in pair:
        found = trash(device, "trash")
        assert {one["path"] for one in found} == {"trash/sub/f", "trash/sub"}
        assert all(one["device"] == anna.status()["device"] for one in found)
        assert all({"path", "time", "device"} <= one.keys() for one in found)
        assert history(device, "trash/sub/f")[0]["deleted"]
    printed = anna.run_json("trash", str(anna.directory / "trash"))
    assert printed == trash(anna, "trash")
    ben.run("restore", str(ben.directory / "trash/sub/f"))
    ben.wait(devices=2)
    assert (anna.directory / "trash/sub/f").read_bytes() == LARGE
    assert trash(anna, "trash") == []


def test_a_directory_as_of_a_time(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    write(pair, "tree/kept", b"kept")
    write(pair, "tree/sub/edited", b"before")
    write(pair, "tree/gone", LARGE)
    then = history(anna, "tree/gone")[0]["time"]
    (anna.directory / "tree/gone").unlink()
    write(pair, "tree/sub/edited", b"after")
    write(pair, "tree/later", b"later")
    assert set(restore(ben, "tree", at=then)) == {"tree/sub/edited", "tree/gone"}
    ben.wait(devices=2)
    assert (anna.directory / "tree/gone").read_bytes() == LARGE
    assert (anna.directory / "tree/sub/edited").read_bytes() == b"before"
    assert (anna.directory / "tree/later").read_bytes() == b"later"
    restore(ben, "tree", at=then, to=ben.directory / "tree copy")
    ben.wait(devices=2)
    found = {p.name for p in (anna.directory / "tree copy").rglob("*")}
    assert found == {"kept", "sub", "edited", "gone"}
    wait_until_equal(anna.directory, ben.directory)


def test_bad_input_changes_nothing(pair: tuple[Device, Device], tmp_path: Path) -> None:
    anna, ben = pair
    write(pair, "bad/f", b"one", b"two")
    path, outside = str(ben.directory / "bad/f"), str(tmp_path / "outside")
    before = snapshot(ben.directory)
    for name, how, message in (
        ("bad/f", {"version": "AAAAAAA-99"}, "has no version"),
        ("bad/f", {"at": "1999-12-31"}, "begins later"),
        ("bad/f", {"to": Path(outside)}, "outside of the folder"),
        ("bad/f", {"to": ben.directory / "bad/f"}, "is there already"),
        ("bad/unknown", {}, "nothing is known"),
        ("bad", {}, "is a directory"),
    ):
        with pytest.raises(ForwardedError, match=message) as caught:
            restore(ben, name, **how)
        assert caught.value.forwarded_exit_code == CANNOT_BE_DONE
    for arguments, message in (
        (("--to", str(ben.directory / "bad/../../outside")), "outside of the folder"),
        (("--at", "soon"), "is no time"),
    ):
        done = ben.run("restore", path, *arguments, check=False)
        assert done.returncode == CANNOT_BE_DONE, arguments
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert snapshot(ben.directory) == before
    assert not Path(outside).exists()
    assert len(history(anna, "bad/f")) == 2


def test_an_edit_that_is_not_synced_is_not_overwritten(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    write(pair, "unsynced/f", b"one", b"two")
    with ControlClient(ben.home) as client:
        client.pause(ben.directory)
    (ben.directory / "unsynced/f").write_bytes(b"not synced")
    with pytest.raises(ForwardedError, match="Nothing was changed") as caught:
        restore(ben, "unsynced/f")
    assert caught.value.forwarded_exit_code == CANNOT_BE_DONE
    assert (ben.directory / "unsynced/f").read_bytes() == b"not synced"
    with ControlClient(ben.home) as client:
        client.resume(ben.directory)
    ben.wait(devices=2)
    assert (anna.directory / "unsynced/f").read_bytes() == b"not synced"


def test_what_only_a_device_that_is_away_has(pair: tuple[Device, Device]) -> None:
    """Anna edits twice: what she replaced is gone from her disk, and lies in Ben's history."""
    anna, ben = pair
    only_once = CHANCE.randbytes(400_000)  # nowhere else on any disk
    write(pair, "away/f", only_once, b"second")
    path = str(anna.directory / "away/f")
    assert [one["available"] for one in history(anna, "away/f")] == [True, True]
    ben.stop()
    assert [one["available"] for one in history(anna, "away/f")] == [True, False]
    assert "not available" in anna.run("history", path).stdout
    done = anna.run("restore", path, check=False)
    assert done.returncode == MACHINE_REFUSED
    assert "no device that is connected" in done.stderr
    assert (anna.directory / "away/f").read_bytes() == b"second"
    ben.up()
    wait_for(lambda: [one["available"] for one in history(anna, "away/f")] == [True, True])
    restore(anna, "away/f")
    assert (anna.directory / "away/f").read_bytes() == only_once


def test_settings_and_history_outlive_a_restart(pair: tuple[Device, Device]) -> None:
    _, ben = pair
    only_once = CHANCE.randbytes(400_000)
    write(pair, "restart/f", only_once, b"second")
    options = ("--all", "7d", "--daily", "90d", "--percent", "5", "--size", "2GB")
    set_ = ben.run_json("keep", str(ben.directory), *options)
    before = history(ben, "restart/f")
    ben.kill()
    ben.up()
    ben.wait(devices=2)
    with ControlClient(ben.home) as client:
        again = to_json(client.keep(ben.directory))
    assert {k: again[k] for k in ("all_s", "daily_s", "share", "size")} == {
        "all_s": 7 * 86400, "daily_s": 90 * 86400, "share": 0.05, "size": 2 * 10**9,
    }  # fmt: skip
    assert again["versions"] == set_["versions"] > 0
    assert history(ben, "restart/f") == before
    restore(ben, "restart/f")
    assert (ben.directory / "restart/f").read_bytes() == only_once
    refused = ben.run("keep", str(ben.directory), "--percent", "-1", check=False)
    assert refused.returncode == CANNOT_BE_DONE
