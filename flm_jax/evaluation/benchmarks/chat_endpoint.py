"""Client of a chat model at an OpenAI-compatible endpoint; it uses the standard library alone."""

import contextlib
import html
import http.client
import ipaddress
import json
import queue
import re
import socket
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flm_jax.core.errors import UserError, require
from flm_jax.core.reading import loads

URL, KEY, MODEL = "JUDGE_URL", "JUDGE_KEY", "JUDGE_MODEL"
_TOKENS = 2048
_AGAIN = (408, 409, 429, 500, 502, 503, 504)
_MOVED = (301, 302, 303, 307, 308)
_TRIES = 4
_MOST_BYTES = 1 << 20
_HIDDEN = "(key)"


class Endpoint(NamedTuple):
    """Address and settings of a chat model.

    Attributes:
      url: base URL, such as https://host/v1; "/chat/completions" is appended.
      key: bearer token; "" for none.
      model: name of the model at the endpoint.
      seconds: time limit of a complete call, in seconds.
      pause: time before the second try in seconds, doubled for each further one.
    """

    url: str
    key: str
    model: str
    seconds: float = 120.0
    pause: float = 2.0


def from_environment(environment: Mapping[str, str], model: str = "") -> Endpoint | None:
    """Returns the endpoint of JUDGE_URL, JUDGE_KEY and JUDGE_MODEL; None without JUDGE_URL.

    Args:
      environment: environment variables by name.
      model: name that overrides JUDGE_MODEL; "" for none.

    Raises:
      UserError: a URL of another scheme, no model, or a key that no header can hold.
    """
    url, key = environment.get(URL, "").rstrip("/"), environment.get(KEY, "")
    if not url:
        return None
    host, scheme = _host(url)
    require(
        scheme in ("http", "https") and bool(host),
        f"{URL} is {url!r}; expected the base of an OpenAI-compatible endpoint, such as "
        "https://host/v1, without a name or a password in it.",
    )
    require(
        all("!" <= sign <= "~" for sign in key),
        f"{KEY} holds a blank, a line end or another sign that no header may have; expected the "
        "key alone.",
    )
    if key and scheme == "http" and not _here(host):
        warning = f"WARNING: {KEY} goes to {host} unencrypted; expected https:// in {URL}."
        print(warning, file=sys.stderr, flush=True)
    model = model or environment.get(MODEL, "")
    require(
        bool(model),
        f"{URL} is set and {MODEL} is not; set it, or --judge_model, to the name of the judge.",
    )
    return Endpoint(url, key, model)


def _host(url: str) -> tuple[str, str]:
    """Host and scheme of a URL; no host if it contains a user or is invalid."""
    try:
        parts = urllib.parse.urlsplit(url)
        return "" if "@" in parts.netloc else parts.hostname or "", parts.scheme
    except ValueError:
        return "", ""


def _here(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class _Calls:
    """The connections of one call, which end with it, whatever a server still sends."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._ended = False

    def opener(self) -> urllib.request.OpenerDirector:
        """Follows no redirect. Plain http takes no proxy, which would read the key."""
        proxies = {k: v for k, v in urllib.request.getproxies().items() if k == "https"}
        plain, encrypted = map(
            self._noted, (http.client.HTTPConnection, http.client.HTTPSConnection)
        )

        class Plain(urllib.request.HTTPHandler):
            def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(plain, request)

        class Encrypted(urllib.request.HTTPSHandler):
            def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(encrypted, request)

        handlers = (urllib.request.ProxyHandler(proxies), Plain, Encrypted, _NoRedirect)
        return urllib.request.build_opener(*handlers)

    def _noted(self, kind: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
        calls = self

        class Noted(kind):  # type: ignore[valid-type, misc]
            def connect(self) -> None:
                super().connect()
                calls._sockets.append(self.sock)
                if calls._ended:
                    calls.end()

        return Noted

    def end(self) -> None:
        """What waits on a connection of the call finds it closed."""
        self._ended = True
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Treats a redirect like any other answer: following it would send the key elsewhere."""

    def redirect_request(self, *args: Any, **named: Any) -> None:
        return None


def ask(endpoint: Endpoint, system: str, user: str) -> str:
    """Returns the answer at temperature 0.

    After overload, lost connections, and answers that are no chat completion, too long or too late,
    the call is tried again, four times. `endpoint.seconds` limits the complete call.

    Raises:
      UserError: no answer; the message does not contain the key.
    """
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    body = {"model": endpoint.model, "messages": messages, "temperature": 0, "max_tokens": _TOKENS}
    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    request = urllib.request.Request(
        f"{endpoint.url}/chat/completions", json.dumps(body).encode(), headers
    )
    hidden = _hiding(endpoint.key)
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(endpoint.pause * 2 ** (attempt - 1))
        try:
            status, answer = _called(request, endpoint.seconds)
            # Before it is cut or quoted, which may leave a part or another form of it there.
            answer = hidden(answer.decode("latin-1")).encode("latin-1")
            if status == 200:
                return hidden(_content(answer))
            reason = f"status {status}, {_start(answer).decode('utf8', 'replace')!r}"
            if status in _MOVED:
                reason += f"; redirects are not followed, set {URL} to where it leads"
            if status not in _AGAIN:
                break
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
    raise UserError(
        f"the judge {endpoint.model} at {endpoint.url} gave no answer: {hidden(reason)}."
    )


def _hiding(key: str) -> Callable[[str], str]:
    """Returns a function that replaces a key by `_HIDDEN`, also if escaped for JSON, URL or HTML.

    Characters of two bytes, as in UTF-16, have a NUL between them.
    """
    if not key:
        return lambda text: text
    each = []
    for sign in key:
        plain, entity, number = re.escape(sign), re.escape(html.escape(sign)), ord(sign)
        digits = f"(?i:{number:02x})"
        each.append(
            rf"(?:\\{{0,7}}{plain}|{entity}|\\{{1,4}}u00{digits}|%{digits}"
            rf"|&#0*{number};|&#[xX]0*{digits};)"
        )
    pattern = re.compile("\0?".join(each))
    return lambda text: pattern.sub(_HIDDEN, text)


def _start(answer: bytes) -> bytes:
    return answer.replace(b"\0", b"")[:300]


def _called(request: urllib.request.Request, seconds: float) -> tuple[int, bytes]:
    """Status and body of one call within its time limit.

    A timeout of sockets applies to each read: a server may send a byte before every one of them.

    Raises:
      OSError: no connection, or no complete answer in time.
      ValueError: a body of more than `_MOST_BYTES`.
    """
    found: queue.SimpleQueue = queue.SimpleQueue()
    calls, deadline = _Calls(), time.monotonic() + seconds

    def call() -> None:
        try:
            try:
                response = calls.opener().open(request, timeout=seconds)
            except urllib.error.HTTPError as error:
                response = error  # an answer with another status
            with response:
                found.put((response.status, _body(response, deadline)))
        except BaseException as error:
            found.put(error)

    # The thread never keeps this process from its end.
    threading.Thread(target=call, daemon=True).start()
    try:
        result = found.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no whole answer within {seconds:g} s") from None
    finally:
        calls.end()
    if isinstance(getattr(result, "reason", result), TimeoutError):  # of the socket, just before
        raise TimeoutError(f"no whole answer within {seconds:g} s")
    if isinstance(result, BaseException):
        raise result
    if len(result[1]) > _MOST_BYTES:
        raise ValueError(f"an answer of more than {_MOST_BYTES} bytes")
    return result


def _body(response: Any, deadline: float) -> bytes:
    """Body of a response within its time; for a body that is too long, a part above the limit."""
    parts, length = [], 0
    while length <= _MOST_BYTES and time.monotonic() < deadline:
        part = response.read1(_MOST_BYTES + 1 - length)
        if not part:
            break
        parts.append(part)
        length += len(part)
    return b"".join(parts)


def _content(answer: bytes) -> str:
    try:
        text = loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f"it answered {_start(answer)!r}; expected the JSON of a chat completion")
    return text
