"""What lies in a device's home, and who can do what with it."""

from __future__ import annotations

import contextlib
import os
import pty
import stat
import subprocess
from pathlib import Path

import pytest

from crdt.invitation import Invitation
from tests.support.processes import ROOT, members
from tests.support.trees import wait_for
from transport.identity import load_or_create

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

USAGE, PASSPHRASE = 2, 21
WORDS = "correct horse battery"


def never(_size: int) -> bytes:
    raise AssertionError("a new identity was made")


def files_below(home: Path) -> dict[Path, bytes]:
    """Every file of a home, but for its sockets."""
    found = {}
    for path in home.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # temporary, while a node runs
            if path.is_file():
                found[path] = path.read_bytes()
    return found


def holds(home: Path, secret: bytes) -> bool:
    """Whether any file of a home has these bytes."""
    return any(secret in data for data in files_below(home).values())


def test_keys_at_rest(tmp_path: Path) -> None:
    secret = "what nobody else may know, at some length. " * 200
    with members(tmp_path, "anna") as (anna,):
        (anna.directory / "secret.txt").write_text(secret)
        invitation = Invitation.from_text(anna.invite())
        ben = type(anna)(tmp_path, "ben", options=("--no-lan", "--listen", "127.0.0.1:0"))
        with ben:
            ben.join(invitation.text)
            wait_for((ben.directory / "secret.txt").exists)
            wait_for(lambda: not holds(ben.home, invitation.secret), say="no use any more")
            ben.stop()
            seed = load_or_create(str(ben.home / "identity"), never).seed

            # Under a passphrase, from a file.
            words = tmp_path / "words"
            words.write_text(f"{WORDS}\n")
            wrong = tmp_path / "wrong"
            wrong.write_text("correct horse batter\n")
            short = tmp_path / "short"
            short.write_text("short\n")
            before = (ben.home / "identity").read_bytes()
            refused = ben.run("passphrase", "--new-file", str(short), check=False)
            assert (refused.returncode, "8 to" in refused.stderr) == (PASSPHRASE, True)
            refused = ben.run("passphrase", "--new-file", str(tmp_path / "none"), check=False)
            assert (refused.returncode, "nothing was changed" in refused.stderr) == (USAGE, True)
            assert (ben.home / "identity").read_bytes() == before
            assert ben.run_json("passphrase", "--new-file", str(words))["sealed"] is True
            sealed = files_below(ben.home)
            for path, data in sealed.items():
                assert seed not in data, path
                assert invitation.secret not in data, path
                assert secret[:100].encode() not in data, path

            # A node that starts needs it; without it, nothing happens.
            for options in ((), ("--passphrase-file", str(wrong))):
                up = ben.run("up", str(ben.directory), *ben.options, *options, check=False)
                assert up.returncode == PASSPHRASE, up
                assert "nothing was changed" in up.stderr.lower()
            refused = ben.run("passphrase", "--clear", "--passphrase-file", str(wrong), check=False)
            assert refused.returncode == PASSPHRASE
            assert (ben.home / "identity").read_bytes() == sealed[ben.home / "identity"]
            ben.up("--passphrase-file", str(words))
            (ben.directory / "by ben.txt").write_text("ben\n")
            wait_for((anna.directory / "by ben.txt").exists)
            ben.stop()

            # A person at a terminal is asked.
            assert asked_at_a_terminal(ben.command("passphrase", "--clear"), WORDS) == 0
            assert load_or_create(str(ben.home / "identity"), never).seed == seed

            # What others of this machine could read is taken from them, and they are told of it.
            (ben.home / "identity").chmod(0o644)
            ben.up()
            assert stat.S_IMODE((ben.home / "identity").stat().st_mode) == 0o600
            assert "could be read by other users" in str(ben.folder()["warnings"])
            ben.stop()
            for path in ben.home.rglob("*"):
                if path.name in {"identity", "config", "roster", "token", "control.token"}:
                    assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def asked_at_a_terminal(command: list[str], answer: str) -> int:
    """Run a command on a terminal where a person gives `answer`; its exit code."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while b"assphrase of" not in shown:
            shown += os.read(ours, 1024)
        os.write(ours, f"{answer}\n".encode())
        try:
            while data := os.read(ours, 1024):
                shown += data
        except OSError:
            pass  # the terminal is gone with the process
        os.close(ours)
        assert answer.encode() not in shown, "it is not echoed"
        return process.wait(60)
