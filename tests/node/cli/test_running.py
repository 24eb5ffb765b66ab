"""`up` and `join`: what reaches the node, and what a person sees of it."""

from __future__ import annotations

import io
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from crdt.errors import CallerError, WorldError
from node.cli.main import run
from node.cli.report import BarReporter, Meter, PlainReporter
from node.control.facade import Phase, Progress
from node.control.options import JoinOptions, Ready, Reporter, UpOptions
from transport.address import Address

READY = Ready("/x/Shoal", "ABCDEFGHIJ", "0.0.0.0:22071")


class FakeApp(types.ModuleType):
    """Stands for `node.app`: remembers what it was called with, and does `script`."""

    def __init__(self) -> None:
        super().__init__("node.app")
        self.calls: list[UpOptions | JoinOptions] = []
        self.script: Callable[[Reporter], None] = lambda report: report.ready(READY)

    def run_up(self, options: UpOptions, reporter: Reporter) -> None:
        self.calls.append(options)
        self.script(reporter)

    def run_join(self, options: JoinOptions, reporter: Reporter) -> None:
        self.calls.append(options)
        self.script(reporter)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> FakeApp:
    import node

    app = FakeApp()
    monkeypatch.setitem(sys.modules, "node.app", app)
    monkeypatch.setattr(node, "app", app, raising=False)
    return app


def test_up_hands_over_what_was_asked_for(
    app: FakeApp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run([
        "--home", str(tmp_path / "h"), "up", str(tmp_path / "d"), "--name", "desk", "--no-lan",
        "--no-merge",
        "--listen", "[::1]:4", "--peer", "a.example:5", "--peer", "10.0.0.1:6",
    ])  # fmt: skip
    assert code == 0
    assert app.calls == [
        UpOptions(
            home=tmp_path / "h",
            directory=tmp_path / "d",
            name="desk",
            listen=Address("::1", 4),
            peers=(Address("a.example", 5), Address("10.0.0.1", 6)),
            lan=False,
            no_merge=True,
        )
    ]
    out, err = capsys.readouterr()
    assert out == "ready: /x/Shoal  device ABCDEFG  listening on 0.0.0.0:22071\n"
    assert err == ""


def test_up_alone_means_here_and_the_usual(
    app: FakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHOAL_HOME", "relative")
    assert run(["up"]) == 0
    (options,) = app.calls
    assert isinstance(options, UpOptions)
    assert options.home == tmp_path / "relative"
    assert options.directory == tmp_path
    assert options.listen is None
    assert options.lan
    assert not options.no_merge
    assert options.name


def test_home_may_stand_after_the_verb_and_beats_the_environment(
    app: FakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "environment"))
    for words in (["--home", str(tmp_path / "h"), "up"], ["up", "--home", str(tmp_path / "h")]):
        assert run(words) == 0
    assert run(["up"]) == 0
    homes = [call.home for call in app.calls if isinstance(call, UpOptions)]
    assert homes == [tmp_path / "h", tmp_path / "h", tmp_path / "environment"]


def test_join_takes_an_invitation_and_the_same_options(app: FakeApp, tmp_path: Path) -> None:
    assert run(["join", "shoal1-x", str(tmp_path), "--name", "desk", "--peer", "h:1"]) == 0
    (options,) = app.calls
    assert isinstance(options, JoinOptions)
    assert options.invitation == "shoal1-x"
    assert options.up.directory == tmp_path
    assert options.up.peers == (Address("h", 1),)


def test_join_reads_the_invitation_from_stdin(
    app: FakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("shoal1-secret\nmore\n"))
    assert run(["join", "-", str(tmp_path)]) == 0
    (options,) = app.calls
    assert isinstance(options, JoinOptions)
    assert options.invitation.strip() == "shoal1-secret"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--listen", "nowhere"], "is no address"),
        (["--listen", "host:99999"], "is no address"),
        (["--peer", "host"], "is no address"),
        (["--peer", "host:0"], "port 0"),
        (["--name", ""], "--name"),
        (["--name", "a\x1b[31m"], "--name"),
        (["--name", "x" * 200], "--name"),
    ],
)
def test_bad_options_are_refused_before_the_node_starts(
    app: FakeApp, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["up", *words]) == 2
    assert message in capsys.readouterr().err
    assert app.calls == []


@pytest.mark.parametrize("words", [["join"], ["join", "x"], ["up", "a", "b"], ["fly"], ["--fly"]])
def test_wrong_usage_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    assert "Usage: shoal" in capsys.readouterr().err


def test_an_error_of_the_node_is_shown_and_exits_with_its_code(
    app: FakeApp, capsys: pytest.CaptureFixture[str]
) -> None:
    class FullError(WorldError):
        exit_code = 33

    def fail(_: Reporter) -> None:
        raise ExceptionGroup("nursery", [ExceptionGroup("inner", [FullError("disk full")])])

    app.script = fail
    assert run(["up"]) == 33
    assert capsys.readouterr().err == "shoal: disk full\n"


def test_a_bug_is_not_dressed_up(app: FakeApp) -> None:
    def fail(_: Reporter) -> None:
        raise ExceptionGroup("nursery", [CallerError("no"), KeyError("bug")])

    app.script = fail
    with pytest.raises(ExceptionGroup):
        run(["up"])


def test_interrupted_before_the_node_handles_signals(app: FakeApp) -> None:
    def interrupt(_: Reporter) -> None:
        raise KeyboardInterrupt

    app.script = interrupt
    assert run(["up"]) == 130


def test_ready_in_json(app: FakeApp, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "ready": True,
        "path": "/x/Shoal",
        "device": "ABCDEFGHIJ",
        "listening": "0.0.0.0:22071",
        "joined": False,
    }


# --- progress -------------------------------------------------------------------------------------


def receiving(done: int, total: int = 10_000_000) -> Progress:
    return Progress(Phase.RECEIVING, done, total, done // 1_000_000, total // 1_000_000)


def test_rate_and_time_left_count_from_where_the_phase_began() -> None:
    meter = Meter(receiving(2_000_000), now=100.0)
    assert meter.rate(receiving(2_000_000), 100.0) == 0
    assert meter.text(receiving(4_000_000), 104.0) == (
        "receiving: 4.0 MB of 10.0 MB (40 %), 4 of 10 files, 500.0 kB/s, 0:12 left"
    )


def test_plain_lines_come_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    report = PlainReporter(json=False, clock=lambda: now[0])
    for second in range(12):
        now[0] = float(second)
        report.progress(receiving(second * 500_000))
    report.progress(None)
    report.warning("a\x1b.txt: permission denied")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "receiving: 2.5 MB of 10.0 MB (25 %), 2 of 10 files, 500.0 kB/s, 0:15 left",
        "receiving: 5.0 MB of 10.0 MB (50 %), 5 of 10 files, 500.0 kB/s, 0:10 left",
        r"warning: a\x1b.txt: permission denied",
    ]


def test_bars_come_and_go() -> None:
    text = io.StringIO()
    bar = BarReporter(Console(file=text, force_terminal=True, width=120))
    bar.progress(Progress(Phase.SCANNING, 0, 0, 0, 0))
    bar.progress(receiving(5_000_000))
    bar.progress(receiving(10_000_000))
    bar.warning("careful [red]")
    bar.progress(None)
    bar.progress(None)
    shown = text.getvalue()
    assert "scanning" in shown
    assert "receiving" in shown
    assert "10/10 files" in shown
    assert "warning: careful [red]" in shown
