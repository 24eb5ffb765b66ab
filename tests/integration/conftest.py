"""What takes long and needs no company runs beside the other tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from crdt.ids import FolderId
from crdt.invitation import Invitation
from tests.support.processes import ROOT, free_port, on_loopback
from transport.identity import Identity


@pytest.fixture(scope="session", autouse=True)
def lonely_join(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A join that nobody answers: it takes half a minute to give up."""
    eve = on_loopback(tmp_path_factory.mktemp("lonely"), "eve")
    invitation = Invitation(
        folder=FolderId(b"\x01" * 32),
        secret=b"\x07" * 32,
        inviter=Identity.from_seed(b"nobody.." * 4).device,
        addresses=(("127.0.0.1", free_port()),),
    )
    process = subprocess.Popen(
        eve.command("join", invitation.text, str(eve.directory), *eve.options),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        yield process
        process.kill()
