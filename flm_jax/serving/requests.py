"""Reads the body of a completion request and checks it against the limits of the server."""

import dataclasses
import json
import secrets
from collections.abc import Mapping
from typing import Any

from flm_jax.core.errors import LAST_SEED, UserError, one_of
from flm_jax.core.files import to_json
from flm_jax.core.settings import settings_of
from flm_jax.data.text import tidy
from flm_jax.samplers.base import Steps, read_steps
from flm_jax.samplers.registry import SAMPLERS
from flm_jax.serving.errors import RequestError, insist
from flm_jax.serving.limits import Limits

# Fields of OpenAI's API that change nothing at these values, and that nothing here answers to.
_NEUTRAL = {
    "best_of": (1,),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "logprobs": (0,),
    "suffix": ("",),
}
OWN_FIELDS = (
    *("model", "prompt", "infill", "max_tokens", "n", "steps", "seed", "stop", "echo"),
    *("stream", "stream_options", "sampler", "user"),
)
_SETTINGS = {
    key: one for made in SAMPLERS.values() for key, one in settings_of(made.settings).items()
}
# Paths: only whoever starts the server names files.
LARGEST = {"bigram_candidates": 64}  # memory grows with its square, of trigrams its cube
PATHS = {key for key, one in _SETTINGS.items() if type(one.default) is str and not one.choices}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A completion request that was read.

    Attributes:
      model: name of the model, "" for the one that is served.
      prompts: one text or more with which texts begin.
      infill: template in which {n} stands for n tokens to generate, after the prompt.
      max_tokens: number of tokens to generate; None for all the room that is left.
      n: number of texts for each prompt.
      steps: step count of the sampler; None for the server's.
      seed: seed of the draws.
      stop: strings before which a text ends.
      echo: whether a text includes its prompt.
      stream: whether the texts are sent after each network call.
      usage: whether a stream ends with the counts of tokens.
      sampler: name of a sampler; "" for the server's.
      settings: settings of the sampler by name.
    """

    model: str
    prompts: tuple[str, ...]
    infill: str
    max_tokens: int | None
    n: int
    steps: Steps | None
    seed: int
    stop: tuple[str, ...]
    echo: bool
    stream: bool
    usage: bool
    sampler: str
    settings: dict[str, Any]


def parse(body: bytes) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      RequestError: status 400, the body is none.
    """

    def refused(word: str) -> None:
        raise ValueError(f"{word} is no number of JSON")

    try:
        found = json.loads(body.decode("utf8"), parse_constant=refused)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(400, f"the body is no JSON ({reason}); expected an object.") from error
    insist(isinstance(found, dict), f"got {_shown(found)}; expected a JSON object.")
    return found


def read_request(fields: Mapping[str, Any], limits: Limits) -> Wanted:
    """Reads the fields of a completion request; null stands for a field that is missing.

    Raises:
      RequestError: status 400 for an unknown field or a value of another type or range, status 422
        for a limit of the server.
    """
    fields = {key: value for key, value in fields.items() if value is not None}
    settings = _settings(fields)
    for key, values in _NEUTRAL.items():
        own = (*values, fields.get("n")) if key == "best_of" else values
        got = fields.get(key, values[0])
        insist(
            any(got == value and type(got) is type(value) for value in own),
            f"got {key}={_shown(got)}, which this server has not; leave it out.",
            key,
        )
    options = _typed(fields, "stream_options", dict, {})
    unknown = sorted(options.keys() - {"include_usage"})
    insist(not unknown, f"unknown stream_options {unknown}; valid: include_usage.")
    usage = _typed(options, "include_usage", bool, False)
    _typed(fields, "user", str, "")
    tokens = _whole(fields, "max_tokens", None, 0)
    wanted = Wanted(
        model=_typed(fields, "model", str, ""),
        prompts=_prompts(fields, limits),
        infill=_text(fields, "infill", limits),
        max_tokens=tokens,
        n=_whole(fields, "n", 1, 1),
        steps=_steps(fields),
        seed=_whole(fields, "seed", None, 0, LAST_SEED),
        stop=_stop(fields, limits),
        echo=_typed(fields, "echo", bool, False),
        stream=_typed(fields, "stream", bool, False),
        usage=usage,
        sampler=_typed(fields, "sampler", str, ""),
        settings=settings,
    )
    if wanted.seed is None:
        wanted = dataclasses.replace(wanted, seed=secrets.randbelow(LAST_SEED + 1))
    _check_limits(wanted, limits)
    return wanted


def _check_limits(wanted: Wanted, limits: Limits) -> None:
    texts, tokens = len(wanted.prompts) * wanted.n, wanted.max_tokens or 0
    got = f"got {len(wanted.prompts)} prompts with n={wanted.n}, {texts} texts; expected at most"
    insist(texts <= limits.texts, f"{got} {limits.texts} in a request.", "n", 422)
    # It would never be accepted: the texts of a request wait together.
    insist(
        texts <= limits.waiting,
        f"{got} {limits.waiting}, as many as may wait (--max_waiting).",
        "n",
        422,
    )
    insist(
        not limits.tokens or tokens <= limits.tokens,
        f"got max_tokens={tokens}; expected at most {limits.tokens}.",
        "max_tokens",
        422,
    )


def _settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of samplers among the fields; refuses fields that are unknown, and paths."""
    settings = {}
    for key, value in fields.items():
        if key in _SETTINGS:
            insist(
                key not in PATHS,
                f"got {key}; expected none: only who starts the server names files.",
                key,
            )
            most = LARGEST.get(key)
            insist(
                most is None or type(value) is not int or value <= most,
                f"got {key}={_shown(value)}; expected at most {most}.",
                key,
                422,
            )
            settings[key] = value
        elif key not in OWN_FIELDS and key not in _NEUTRAL:
            try:
                one_of("field", key, {*OWN_FIELDS, *_SETTINGS} - PATHS)
            except UserError as error:
                raise RequestError(400, str(error), key[:100]) from error
    return settings


def _prompts(fields: Mapping[str, Any], limits: Limits) -> tuple[str, ...]:
    got = fields.get("prompt", "")
    if isinstance(got, list):
        insist(bool(got), "got an empty list of prompts; expected one or more.", "prompt")
        insist(
            len(got) <= limits.texts,
            f"got {len(got)} prompts; expected at most {limits.texts} texts in a request.",
            "prompt",
            422,
        )
    each = got if isinstance(got, list) else [got]
    insist(
        all(isinstance(one, str) for one in each),
        f"got prompt={_shown(got)}; expected a text or a list of texts (ids of tokens are not "
        "read).",
        "prompt",
    )
    return tuple(_text({"prompt": one}, "prompt", limits) for one in each)


def _text(fields: Mapping[str, Any], key: str, limits: Limits) -> str:
    text = _typed(fields, key, str, "")
    insist(
        len(text) <= limits.prompt,
        f"got a {key} of {len(text)} characters; expected at most {limits.prompt}.",
        key,
        422,
    )
    return tidy(text)


def _steps(fields: Mapping[str, Any]) -> Steps | None:
    got = fields.get("steps")
    if isinstance(got, str):
        try:
            return read_steps(got[:40])
        except UserError as error:
            raise RequestError(400, str(error), "steps") from error
    return _whole(fields, "steps", None, 1)


def _stop(fields: Mapping[str, Any], limits: Limits) -> tuple[str, ...]:
    got = fields.get("stop", [])
    each = got if isinstance(got, list) else [got]
    insist(
        all(isinstance(one, str) and one for one in each),
        f"got stop={_shown(got)}; expected a text or a list of texts, none of them empty.",
        "stop",
    )
    insist(
        len(each) <= limits.stops and sum(map(len, each)) <= limits.prompt,
        f"got {len(each)} stop strings of {sum(map(len, each))} characters; expected at most "
        f"{limits.stops} of {limits.prompt} together.",
        "stop",
        422,
    )
    return tuple(each)


def _typed(fields: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    names = {str: "a text", bool: "true or false", dict: "an object"}
    got = fields.get(key, default)
    insist(type(got) is kind, f"got {key}={_shown(got)}; expected {names[kind]}.", key)
    return got


def _whole(
    fields: Mapping[str, Any], key: str, default: int | None, least: int, most: int = LAST_SEED
) -> int | None:
    if key not in fields:
        return default
    got = fields[key]
    insist(
        type(got) is int and least <= got <= most,
        f"got {key}={_shown(got)}; expected a whole number from {least} to {most}.",
        key,
    )
    return got


def _shown(value: Any) -> str:
    """A value as JSON, cut if it is long."""
    text = to_json(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
