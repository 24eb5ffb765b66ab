"""Asks a running node over its Unix socket. Synchronous: it serves the CLI and tests.

Every call raises `NodeNotRunningError` when nobody listens, `ForwardedError` with what the node
raised, and `NodeTooSlowError` when the node does not answer.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlencode

from node.control.address import ControlAddress
from node.control.conflict_shapes import ConflictInfo, ConflictTexts
from node.control.errors import ForwardedError, NodeNotRunningError, NodeTooSlowError, from_message
from node.control.facade import (
    DeviceInfo,
    Event,
    HistoryResult,
    Keep,
    KeepResult,
    ResolveResult,
    RestoreResult,
    Role,
    Status,
    TrashItem,
    VerifyResult,
    WaitResult,
)
from node.control.shapes import from_json

ANSWER_TIMEOUT_S: Final = 30.0  # a node on a slow disk may be busy, but not longer

T = TypeVar("T")


class ControlClient:
    """Asks the node that runs with `home`; connects anew for each question."""

    def __init__(self, home: Path) -> None:
        self._home = home
        address = ControlAddress.load(home)
        if address is None or not _answers(address.socket):
            raise _not_running(home)
        self._http = _UnixConnection(address.socket)

    def status(self) -> Status:
        """See `NodeFacade.status`."""
        return _read(Status, self._call("GET", "/status"))

    def invite(self, directory: Path, *, role: Role, uses: int, expires_s: float) -> str:
        """See `NodeFacade.invite`."""
        body = {"role": role.value, "uses": uses, "expires_s": expires_s}
        answer = self._call("POST", "/invite", {"dir": str(directory), **body})
        return _read(str, answer.get("invitation"))

    def devices(self, directory: Path) -> tuple[DeviceInfo, ...]:
        """See `PeopleFacade.devices`."""
        return self.people(tuple[DeviceInfo, ...], "devices", directory)

    def people(self, shape: type[T], verb: str, directory: Path, **fields: object) -> T:
        """Ask for one of the verbs of `PeopleFacade`; `shape` is what it answers."""
        answer = self._call("POST", f"/people/{verb}", {"dir": str(directory), **fields})
        return _read(shape, answer.get("answer"))

    def wait(self, directory: Path, *, devices: int, timeout_s: float) -> WaitResult:
        """See `NodeFacade.wait`; takes up to `timeout_s` and a little more."""
        body = {"dir": str(directory), "devices": devices, "timeout_s": timeout_s}
        limit_s = timeout_s + ANSWER_TIMEOUT_S
        return _read(WaitResult, self._call("POST", "/wait", body, limit_s=limit_s))

    def verify(self, directory: Path) -> VerifyResult:
        """See `NodeFacade.verify`; takes as long as reading the folder does."""
        answer = self._call("POST", "/verify", {"dir": str(directory)}, limit_s=None)
        return _read(VerifyResult, answer)

    def history(self, path: Path) -> HistoryResult:
        """See `NodeFacade.history`."""
        return _read(HistoryResult, self._call("POST", "/history", {"path": str(path)}))

    def restore(
        self, path: Path, *, version: str | None, at_ms: int | None, to: Path | None
    ) -> RestoreResult:
        """See `NodeFacade.restore`; takes as long as the bytes need to come."""
        body: dict[str, object] = {"path": str(path), "version": version, "at_ms": at_ms}
        body["to"] = None if to is None else str(to)
        return _read(RestoreResult, self._call("POST", "/restore", body, limit_s=None))

    def trash(self, directory: Path) -> tuple[TrashItem, ...]:
        """See `NodeFacade.trash`."""
        answer = self._call("POST", "/trash", {"dir": str(directory)})
        return _read(tuple[TrashItem, ...], answer.get("deleted"))

    def keep(self, directory: Path, **changes: float | None) -> KeepResult:
        """See `NodeFacade.keep`; `changes` are its arguments."""
        return _read(KeepResult, self._call("POST", "/keep", {"dir": str(directory), **changes}))

    def add_relay(self, directory: Path, *, address: str, token: str) -> str:
        """See `NodeFacade.add_relay`."""
        body: dict[str, object] = {"dir": str(directory), "address": address, "token": token}
        return _read(str, self._call("POST", "/relay", body).get("relay"))

    def relay_stats(self) -> dict[str, Any]:
        """What a relay that runs with this home says of itself."""
        return self._call("GET", "/stats")

    def relay_check(self) -> dict[str, Any]:
        """Let the relay read everything; takes as long as that does."""
        return self._call("POST", "/check", {}, limit_s=None)

    def relay_backup(self, directory: Path) -> dict[str, Any]:
        """Let the relay copy itself; takes as long as that does."""
        return self._call("POST", "/backup", {"directory": str(directory)}, limit_s=None)

    def conflicts(self, directory: Path) -> tuple[ConflictInfo, ...]:
        """See `NodeFacade.conflicts`."""
        answer = self._call("POST", "/conflicts", {"dir": str(directory)})
        return _read(tuple[ConflictInfo, ...], answer.get("conflicts"))

    def conflict(self, path: Path) -> ConflictTexts:
        """See `NodeFacade.conflict`; takes as long as the texts need to come."""
        answer = self._call("POST", "/conflict", {"path": str(path)}, limit_s=None)
        return _read(ConflictTexts, answer)

    def resolve(self, path: Path, *, keep: Keep, file: Path | None) -> ResolveResult:
        """See `NodeFacade.resolve`."""
        body: dict[str, object] = {"path": str(path), "keep": keep.value}
        body["file"] = None if file is None else str(file)
        return _read(ResolveResult, self._call("POST", "/resolve", body, limit_s=None))

    def pause(self, directory: Path) -> None:
        """See `NodeFacade.pause`."""
        self._call("POST", "/pause", {"dir": str(directory)})

    def resume(self, directory: Path) -> None:
        """See `NodeFacade.resume`."""
        self._call("POST", "/resume", {"dir": str(directory)})

    def logs(self, lines: int) -> tuple[str, ...]:
        """See `NodeFacade.logs`."""
        answer = self._call("GET", "/logs", query={"lines": str(lines)})
        return _read(tuple[str, ...], answer.get("lines"))

    def events(self, listening: Callable[[], None] = lambda: None) -> Iterator[Event]:
        """What happens from the first `next` on, until the node ends.

        `listening` is called once nothing is missed any more.
        """
        try:
            with self._ask("GET", "/events", limit_s=None) as response:
                if response.status >= http.client.BAD_REQUEST:
                    raise from_message(_json(response.read()))
                for line in response:
                    text = line.decode().rstrip("\r\n")
                    if text.startswith(": "):
                        listening()
                    if text.startswith("data: "):
                        yield _read(Event, json.loads(text.removeprefix("data: ")))
        except (http.client.HTTPException, OSError):
            return  # the node ended without saying goodbye
        finally:
            self._http.close()

    def shutdown(self) -> None:
        """See `NodeFacade.shutdown`."""
        self._call("POST", "/shutdown", {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def _ask(
        self, method: str, target: str, content: str | None = None, *, limit_s: float | None
    ) -> http.client.HTTPResponse:
        try:
            self._http.connect()
        except OSError:
            raise _not_running(self._home) from None
        self._http.sock.settimeout(limit_s)
        self._http.request(method, target, content)
        return self._http.getresponse()

    def _call(
        self,
        method: str,
        path: str,
        body: dict[str, object] | None = None,
        *,
        query: dict[str, str] | None = None,
        limit_s: float | None = ANSWER_TIMEOUT_S,
    ) -> dict[str, Any]:
        content = None if body is None else json.dumps(body)
        target = path if query is None else f"{path}?{urlencode(query)}"
        try:
            with self._ask(method, target, content, limit_s=limit_s) as response:
                answer = _json(response.read())
        except TimeoutError:
            raise NodeTooSlowError(
                "the node runs but did not answer in time. Nothing was changed that we know of; "
                "try again, and look at `shoal logs`."
            ) from None
        except (http.client.HTTPException, OSError):
            raise NodeNotRunningError(
                "the node stopped before it answered. Your files are safe; start it with "
                "`shoal up DIR`."
            ) from None
        finally:
            self._http.close()
        if response.status >= http.client.BAD_REQUEST or not isinstance(answer, dict):
            raise from_message(answer)
        return answer


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the Unix socket at `path`: no host is ever looked up."""

    def __init__(self, path: str) -> None:
        super().__init__("shoal", timeout=ANSWER_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """See `http.client`."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.close()
            raise


def _json(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _read(shape: type[T], data: object) -> T:
    try:
        return from_json(shape, data)
    except ValueError as error:
        raise ForwardedError(
            "ShoalError",
            f"the node answered with something unknown ({error}); "
            "is it another version? Restart it.",
            1,
        ) from None


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _not_running(home: Path) -> NodeNotRunningError:
    return NodeNotRunningError(
        f"no node is running with the home {home}. Start one with `shoal up DIR`, or name its "
        "home with --home."
    )
