"""The systemd unit and the container file start a relay as it wants to be started."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from node.cli.common import Invocation
from node.cli.relay import relay

DEPLOY = Path(__file__).resolve().parents[3] / "node/relay/deploy"


def parse(command: list[str]) -> tuple[Path, str]:
    """The home and the address that the CLI reads from `shoal relay ...`."""
    program, name, *options = command
    assert (Path(program).name, name) == ("shoal", "relay")
    context = relay.make_context("relay", options, obj=Invocation())
    invocation = context.find_object(Invocation)
    assert invocation is not None
    return invocation.home, context.params["listen"]


def unit() -> str:
    return (DEPLOY / "shoal-relay.service").read_text()


def container() -> dict[str, str]:
    """Instruction -> its last use."""
    text = (DEPLOY / "Containerfile").read_text()
    return dict(re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE))


def test_the_unit_starts_a_relay_on_its_state_directory() -> None:
    settings = dict(re.findall(r"^(\w+)=(.*)$", unit(), re.MULTILINE))
    home, _ = parse(shlex.split(settings["ExecStart"]))
    assert str(home) == f"/var/lib/{settings['StateDirectory']}"
    assert settings["DynamicUser"] == "yes"


def test_the_container_starts_a_relay_on_its_volume() -> None:
    found = container()
    home, listen = parse(json.loads(found["ENTRYPOINT"]))
    assert str(home) == found["VOLUME"]
    assert found["EXPOSE"] == f"{listen.rpartition(':')[2]}/udp"
    assert found["USER"] == "relay"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.slow
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    here = tmp_path / "shoal-relay.service"
    here.write_text(unit().replace("/usr/local/bin/shoal", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(here)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
