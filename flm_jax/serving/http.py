"""The HTTP side: routes, bodies and event streams, as an ASGI application (extra `serve`)."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from typing import Any

from flm_jax.core.extras import import_extra
from flm_jax.core.files import to_json
from flm_jax.serving.completions import Completions
from flm_jax.serving.errors import RequestError, insist, later
from flm_jax.serving.limits import Rates
from flm_jax.serving.requests import Wanted, parse, read_request

_GONE = 499  # of a client that went away; nobody reads it
_JSON = "application/json"


def make_app(completions: Completions, hosts: Collection[str] = ()) -> Any:
    """Returns the ASGI application.

    Args:
      completions: functions that answer requests.
      hosts: names by which clients may address the server, in lower case; () for any. A page of
        another site that a browser is made to send here by its own name is refused so.

    Raises:
      UserError: the extra `serve` is not installed.
    """
    import_extra("starlette", "serve", "the server")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    app = _Endpoints(completions, hosts)
    wrong = {HTTPException: _unrouted, RequestError: _refused, Exception: _failed}
    routes = [
        Route("/health", app.checked(app.health), methods=["GET"]),
        Route("/v1/models", app.checked(app.models), methods=["GET"]),
        Route("/v1/models/{name:path}", app.checked(app.model), methods=["GET"]),
        Route("/v1/completions", app.checked(app.complete), methods=["POST"]),
    ]
    made = Starlette(routes=routes, exception_handlers=wrong)
    made.router.redirect_slashes = False
    return made


class _Endpoints:
    """Functions from requests to responses."""

    def __init__(self, completions: Completions, hosts: Collection[str]) -> None:
        self._completions, self._hosts = completions, hosts
        limits = completions.limits
        self._rates = Rates(limits.rate, limits.burst)

    def checked(self, endpoint: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        """Returns an endpoint that refuses other names of the server."""

        async def guarded(request: Any) -> Any:
            host = _name(request.headers.get("host", ""))
            insist(
                not self._hosts or host in self._hosts,
                f"got the host {host[:100]!r}; expected {' or '.join(sorted(self._hosts))}.",
                status=421,
            )
            return await endpoint(request)

        return guarded

    async def health(self, request: Any) -> Any:
        """Whether the server works, and how much it has to do."""
        worker = self._completions.worker
        found = {
            "status": "ok" if worker.alive else "failed",
            "model": self._completions.served.name,
            "waiting": worker.waiting,
            "running": worker.running,
            "requests_answered": self._completions.answered,
            "texts_written": worker.rows_done,
            "batches": worker.batches_done,
        }
        return _json(found, 200 if worker.alive else 503)

    async def models(self, request: Any) -> Any:
        """The list of the one model."""
        return _json({"object": "list", "data": [self._completions.described()]})

    async def model(self, request: Any) -> Any:
        """The model, if it has this name."""
        name, own = request.path_params["name"], self._completions.served.name
        insist(
            name == own, f"there is no model {name[:100]!r}; this server has {own!r}.", "model", 404
        )
        return _json(self._completions.described())

    async def complete(self, request: Any) -> Any:
        """Texts that continue a prompt."""
        client = request.client.host if request.client else ""
        if seconds := self._rates.wait(client):
            limits = self._completions.limits
            more = f"more than {limits.rate:g} requests a second; ask again in {seconds} s."
            raise later(429, more, seconds, "rate_limit_exceeded")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        insist(kind == _JSON, f"got the Content-Type {kind[:100]!r}; expected {_JSON}.", status=415)
        body = await self._body(request)
        if body is None:
            return _json({}, _GONE)
        limits = self._completions.limits
        wanted = read_request(parse(body), limits)
        if wanted.stream:
            return await self._stream(request, wanted)
        answered = await _unless_gone(request, self._completions.answer(wanted))
        if answered is None:
            return _json({}, _GONE)
        return _json(await self._completions.completion(answered))

    async def _stream(self, request: Any, wanted: Wanted) -> Any:
        """Events of a request; one that is refused before the first of them has its own status."""
        events = self._completions.stream(wanted)
        try:
            first = await _unless_gone(request, anext(events))
        except BaseException:
            await events.aclose()
            raise
        if first is None:
            await events.aclose()
            return _json({}, _GONE)
        return _Stream(request, first, events)

    async def _body(self, request: Any) -> bytes | None:
        """Body of a request, read no further than the limit; None if the client went away."""
        from starlette.requests import ClientDisconnect

        limits, parts, size = self._completions.limits, [], 0
        too_long = RequestError(413, f"the body is too long; expected at most {limits.body} bytes.")
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and (len(stated) > 15 or int(stated) > limits.body):
            raise too_long
        try:
            async with asyncio.timeout(limits.seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > limits.body:
                        raise too_long
                    parts.append(part)
        except TimeoutError as error:
            late = f"the body took longer than {limits.seconds:g} s to arrive; send it at once."
            raise RequestError(408, late) from error
        except ClientDisconnect:
            return None
        return b"".join(parts)


async def _unless_gone(request: Any, work: Awaitable[Any]) -> Any:
    """Awaits `work`, and cancels it when the client goes away; returns None then."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    name, colon, port = host.strip().lower().rpartition(":")
    return name if colon and port.isdecimal() else host.strip().lower()


def _text(body: Any) -> bytes:
    return to_json(body).encode()


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    from starlette.responses import Response

    return Response(_text(body), status, headers, _JSON)


class _Stream:
    """Server-sent events as they happen, the last of them [DONE] or an error.

    Args:
      request: request that is answered.
      first: body of the first event.
      events: the bodies after it; closed when the client goes away.
    """

    def __init__(self, request: Any, first: dict[str, Any], events: AsyncGenerator) -> None:
        self._request, self._first, self._events = request, first, events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        head = [(b"content-type", b"text/event-stream; charset=utf-8")]
        head += [(b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        try:
            await _unless_gone(self._request, self._send_all(send))
        finally:
            await self._events.aclose()

    async def _send_all(self, send: Any) -> None:
        async def data(content: bytes, more: bool = True) -> None:
            body = b"data: " + content + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            await data(_text(self._first))
            async for event in self._events:
                await data(_text(event))
        except RequestError as refusal:
            await data(_text(refusal.body), more=False)
        else:
            await data(b"[DONE]", more=False)


async def _refused(request: Any, refusal: RequestError) -> Any:
    return _json(refusal.body, refusal.status, refusal.headers)


async def _unrouted(request: Any, error: Any) -> Any:
    """The answer of an unknown path or of a method that a path has not."""
    path = request.url.path[:100]
    said = {
        404: f"there is nothing at {path}; expected /v1/completions, /v1/models or /health.",
        405: f"{path} has no {request.method}; see the header Allow.",
    }
    refusal = RequestError(error.status_code, said.get(error.status_code, str(error.detail)))
    return _json(refusal.body, refusal.status, dict(error.headers or {}))


async def _failed(request: Any, error: Exception) -> Any:
    """The answer of a request that broke the server; the log says how."""
    refusal = RequestError(500, "the server failed at this request; its log says why.")
    return _json(refusal.body, refusal.status)
