"""A chat model behind an OpenAI-compatible endpoint, by the standard library alone."""

import http.client
import json
import time
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple

from flm_jax.core.errors import UserError, require

URL, KEY, MODEL = "JUDGE_URL", "JUDGE_KEY", "JUDGE_MODEL"
_TOKENS = 2048
_AGAIN = (408, 409, 429, 500, 502, 503, 504)
_TRIES = 4


class Endpoint(NamedTuple):
    """Where a chat model answers.

    Attributes:
      url: base, such as https://host/v1; "/chat/completions" is added.
      key: sent as a bearer token; "" for none.
      model: name that the endpoint knows.
      seconds: to wait for an answer.
      pause: seconds before a second try, doubled for each further one.
    """

    url: str
    key: str
    model: str
    seconds: float = 120.0
    pause: float = 2.0


def from_environment(environment: Mapping[str, str], model: str = "") -> Endpoint | None:
    """The endpoint of JUDGE_URL, JUDGE_KEY and JUDGE_MODEL; None without JUDGE_URL.

    Args:
      environment: variables by name.
      model: name that goes before that of JUDGE_MODEL; "" for none.

    Raises:
      UserError: a URL of another kind, or no model.
    """
    url = environment.get(URL, "").rstrip("/")
    if not url:
        return None
    require(
        url.startswith(("http://", "https://")),
        f"{URL} is {url!r}; expected the base of an OpenAI-compatible endpoint, such as "
        "https://host/v1.",
    )
    model = model or environment.get(MODEL, "")
    require(
        bool(model),
        f"{URL} is set and {MODEL} is not; set it, or --judge_model, to the name of the judge.",
    )
    return Endpoint(url, environment.get(KEY, ""), model)


def ask(endpoint: Endpoint, system: str, user: str) -> str:
    """The answer at temperature 0; overload and lost connections are tried again, four times.

    Raises:
      UserError: no answer; the message does not hold the key.
    """
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    body = {"model": endpoint.model, "messages": messages, "temperature": 0, "max_tokens": _TOKENS}
    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    request = urllib.request.Request(
        f"{endpoint.url}/chat/completions", json.dumps(body).encode(), headers
    )
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(endpoint.pause * 2 ** (attempt - 1))
        try:
            with urllib.request.urlopen(request, timeout=endpoint.seconds) as response:
                return _content(response.read(), endpoint)
        except urllib.error.HTTPError as error:
            reason = f"status {error.code}, {error.read(300).decode('utf8', 'replace')!r}"
            if error.code not in _AGAIN:
                break
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
    raise UserError(f"the judge {endpoint.model} at {endpoint.url} gave no answer: {reason}.")


def _content(answer: bytes, endpoint: Endpoint) -> str:
    try:
        text = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise UserError(
            f"the judge {endpoint.model} at {endpoint.url} answered {answer[:200]!r}; expected the "
            "JSON of a chat completion."
        )
    return text
