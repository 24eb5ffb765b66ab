"""The control API: HTTP and JSON in, calls of a `NodeFacade` out.

    GET  /status                                            GET  /logs?lines=
    GET  /events   server-sent events                       POST /shutdown
    POST /relay    {dir, address, token?}
    POST /invite   {dir, role?, uses?, expires_s?}          POST /wait  {dir, devices, timeout_s}
    POST /people/VERB {dir, ...}, see `node.control.people`
    POST /verify, /pause, /resume, /trash, /conflicts   {dir}
    POST /history  {path}                POST /restore  {path, version?, at_ms?, to?}
    POST /conflict {path}                                   POST /resolve {path, keep, file?}
    POST /keep     {dir, all_s?, daily_s?, share?, size?}

An error answers with `node.control.errors.to_message`. Requests are small, and refused beyond
BODY_SIZE_MAX before they are parsed. `wait` and `verify` are cancelled when whoever asked hangs up.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crdt.errors import CallerError, ShoalError, WorldError
from node.control import people
from node.control.errors import intended, to_message
from node.control.facade import (
    DEVICES_MAX,
    EXPIRES_DEFAULT_S,
    EXPIRES_MAX_S,
    EXPIRES_MIN_S,
    LINES_MAX,
    TIMEOUT_MAX_S,
    USES_DEFAULT,
    USES_MAX,
    Event,
    Keep,
    NodeFacade,
    Role,
)
from node.control.shapes import dumps

logger = logging.getLogger("shoal.control")

BODY_SIZE_MAX: Final = 64 * 1024  # bytes; the largest real one holds a path
TIME_MS_MAX: Final = 2**53
VERSION_MAX: Final = 100  # characters; real ones have at most 24
PATH_SIZE_MAX: Final = 4096  # bytes; PATH_MAX on Linux

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


def create_app(facade: NodeFacade) -> ASGIApp:
    """The ASGI application over `facade`. It asks nobody who they are: see `require_token`."""
    api = _Api(facade)
    get, post = ["GET"], ["POST"]
    routes = [
        Route("/status", _careful(api.status), methods=get),
        Route("/people/{verb}", _careful(api.people), methods=post),
        Route("/logs", _careful(api.logs), methods=get),
        Route("/events", _careful(api.events), methods=get),
        Route("/invite", _careful(api.invite), methods=post),
        Route("/relay", _careful(api.relay), methods=post),
        Route("/wait", _careful(api.wait), methods=post),
        Route("/verify", _careful(api.verify), methods=post),
        Route("/history", _careful(api.history), methods=post),
        Route("/restore", _careful(api.restore), methods=post),
        Route("/trash", _careful(api.trash), methods=post),
        Route("/keep", _careful(api.keep), methods=post),
        Route("/conflicts", _careful(api.conflicts), methods=post),
        Route("/conflict", _careful(api.conflict), methods=post),
        Route("/resolve", _careful(api.resolve), methods=post),
        Route("/pause", _careful(api.pause), methods=post),
        Route("/resume", _careful(api.resume), methods=post),
        Route("/shutdown", _careful(api.shutdown), methods=post),
    ]
    return Starlette(routes=routes)


def require_token(app: ASGIApp, token: str) -> ASGIApp:
    """`app` for those who send `Authorization: Bearer TOKEN`; 401 for everybody else."""
    expected = f"Bearer {token}".encode()

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = scope.get("headers", [])
        given = next((value for name, value in headers if name == b"authorization"), b"")
        if scope["type"] == "http" and hmac.compare_digest(given, expected):
            await app(scope, receive, send)
        elif scope["type"] == "http":
            error = CallerError("this needs the token in the home's control.token")
            await _answer(to_message(error), status=401)(scope, receive, send)

    return guarded


class _Api:
    def __init__(self, facade: NodeFacade) -> None:
        self._facade = facade

    async def status(self, request: Request) -> Response:
        return _answer(await self._facade.status())

    async def people(self, request: Request) -> Response:
        body = await _body(request)
        directory = _directory(body.get("dir"))
        answered = await people.answer(self._facade, request.path_params["verb"], directory, body)
        return _answer({"answer": answered})

    async def logs(self, request: Request) -> Response:
        text = request.query_params.get("lines", "100")
        lines = _number("lines", int(text) if text.isdecimal() else text, 1, LINES_MAX)
        return _answer({"lines": await self._facade.logs(int(lines))})

    async def events(self, request: Request) -> Response:
        return _EventStream(self._facade.events())

    async def invite(self, request: Request) -> Response:
        body = await _body(request)
        text = await self._facade.invite(
            _directory(body.get("dir")),
            role=_role(body.get("role", Role.EDITOR)),
            uses=int(_number("uses", body.get("uses", USES_DEFAULT), 1, USES_MAX)),
            expires_s=_number(
                "expires_s", body.get("expires_s", EXPIRES_DEFAULT_S), EXPIRES_MIN_S, EXPIRES_MAX_S
            ),
        )
        return _answer({"invitation": text})

    async def relay(self, request: Request) -> Response:
        body = await _body(request)
        device = await self._facade.add_relay(
            _directory(body.get("dir")),
            address=str(body.get("address", "")),
            token=str(body.get("token", "")),
        )
        return _answer({"relay": device})

    async def wait(self, request: Request) -> Response:
        body = await _body(request)
        wait = partial(
            self._facade.wait,
            _directory(body.get("dir")),
            devices=int(_number("devices", body.get("devices"), 1, DEVICES_MAX)),
            timeout_s=_number("timeout_s", body.get("timeout_s"), 0, TIMEOUT_MAX_S),
        )
        return await _while_connected(request, wait)

    async def verify(self, request: Request) -> Response:
        directory = _directory((await _body(request)).get("dir"))
        return await _while_connected(request, partial(self._facade.verify, directory))

    async def history(self, request: Request) -> Response:
        path = _directory((await _body(request)).get("path"), "path")
        return await _while_connected(request, partial(self._facade.history, path))

    async def restore(self, request: Request) -> Response:
        body = await _body(request)
        version, at_ms, to = body.get("version"), body.get("at_ms"), body.get("to")
        if version is not None and (not isinstance(version, str) or len(version) > VERSION_MAX):
            raise CallerError("`version` must be one that /history shows")
        if version is not None and at_ms is not None:
            raise CallerError("name a version or a time, not both")
        restore = partial(
            self._facade.restore,
            _directory(body.get("path"), "path"),
            version=version,
            at_ms=None if at_ms is None else int(_number("at_ms", at_ms, 0, TIME_MS_MAX)),
            to=None if to is None else _directory(to, "to"),
        )
        return await _while_connected(request, restore)

    async def trash(self, request: Request) -> Response:
        directory = _directory((await _body(request)).get("dir"))
        return _answer({"deleted": await self._facade.trash(directory)})

    async def keep(self, request: Request) -> Response:
        body = await _body(request)

        def number(name: str) -> float | None:
            return None if body.get(name) is None else _number(name, body[name], 0, TIME_MS_MAX)

        def whole(name: str) -> int | None:
            value = number(name)
            return None if value is None else int(value)

        directory = _directory(body.get("dir"))
        share = number("share")
        return _answer(
            await self._facade.keep(
                directory,
                all_s=whole("all_s"),
                daily_s=whole("daily_s"),
                share=None if share is None else float(share),
                size=whole("size"),
            )
        )

    async def conflicts(self, request: Request) -> Response:
        directory = _directory((await _body(request)).get("dir"))
        return _answer({"conflicts": await self._facade.conflicts(directory)})

    async def conflict(self, request: Request) -> Response:
        path = _directory((await _body(request)).get("path"), "path")
        return await _while_connected(request, partial(self._facade.conflict, path))

    async def resolve(self, request: Request) -> Response:
        body = await _body(request)
        file = body.get("file")
        try:
            keep = Keep(str(body.get("keep")))
        except ValueError:
            raise CallerError(f"`keep` is one of: {', '.join(Keep)}") from None
        if (keep is Keep.FILE) != (file is not None):
            raise CallerError("name a `file` to keep `file`, and only then")
        resolve = partial(
            self._facade.resolve,
            _directory(body.get("path"), "path"),
            keep=keep,
            file=None if file is None else _directory(file, "file"),
        )
        return await _while_connected(request, resolve)

    async def pause(self, request: Request) -> Response:
        await self._facade.pause(_directory((await _body(request)).get("dir")))
        return _answer({})

    async def resume(self, request: Request) -> Response:
        await self._facade.resume(_directory((await _body(request)).get("dir")))
        return _answer({})

    async def shutdown(self, request: Request) -> Response:
        await self._facade.shutdown()
        return _answer({})


class _EventStream(Response):
    """Server-sent events until either side ends it. Closes the subscription."""

    media_type = "text/event-stream"

    def __init__(self, events: trio.MemoryReceiveChannel[Event]) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = self.raw_headers
        async with self._events, trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_hang_up, receive, nursery.cancel_scope)
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            # The first chunk tells the listener that nothing after it will be missed.
            await send(_chunk(": listening\n\n"))
            async for event in self._events:
                await send(_chunk(f"event: {event.kind}\ndata: {dumps(event)}\n\n"))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()


def _chunk(text: str) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": True}


async def _cancel_on_hang_up(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _while_connected(request: Request, call: Callable[[], Awaitable[object]]) -> Response:
    """The answer of `call`, which is cancelled when the client hangs up."""
    answer = _answer({})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_on_hang_up, request.receive, nursery.cancel_scope)
        answer = _answer(await call())
        nursery.cancel_scope.cancel()
    return answer


def _careful(handler: Handler) -> Handler:
    """`handler`, with errors raised on purpose as their messages, and bugs logged and named."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:  # a bug in one request must not end the node
            purposeful = intended(error)
            if purposeful is None:
                logger.exception("the request %s failed", request.url.path)
                purposeful = ShoalError(
                    f"the node could not answer: {type(error).__name__}. This is a bug; "
                    "`shoal logs` has the details. Your files are safe."
                )
            return _answer(to_message(purposeful), status=_http_status(purposeful))

    return handle


def _http_status(error: ShoalError) -> int:
    match error:
        case CallerError():
            return 400
        case WorldError():
            return 503
        case _:
            return 500


def _answer(value: object, *, status: int = 200) -> Response:
    return Response(dumps(value), status_code=status, media_type="application/json")


async def _body(request: Request) -> dict[str, Any]:
    """The request's JSON object.

    Raises:
        CallerError: too large, not JSON, or no object.
    """
    body = bytearray()
    async with contextlib.aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > BODY_SIZE_MAX:
                raise CallerError(f"a request has at most {BODY_SIZE_MAX} bytes")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise CallerError("the request is no JSON") from None
    if not isinstance(data, dict):
        raise CallerError("the request is no JSON object")
    return data


def _directory(value: object, name: str = "dir") -> str:
    if isinstance(value, str) and os.path.isabs(value) and "\0" not in value:
        try:
            if len(os.fsencode(value)) <= PATH_SIZE_MAX:
                return value
        except UnicodeEncodeError:
            pass
    raise CallerError(f"`{name}` must be an absolute path")


def _number(name: str, value: object, low: float, high: float) -> float:
    """`value` if it is a number from `low` to `high`; NaN is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise CallerError(f"`{name}` must be a number from {low:g} to {high:g}")
    return value  # type: ignore[return-value]


def _role(value: object) -> Role:
    try:
        return Role(str(value))
    except ValueError:
        raise CallerError(f"a role is one of: {', '.join(Role)}") from None
