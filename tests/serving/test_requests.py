"""Bodies of requests: what is read of them, what is refused, and the rates of clients."""

import json

import pytest

from flm_jax.samplers.base import Share
from flm_jax.serving.completions import _REPEATS
from flm_jax.serving.errors import RequestError
from flm_jax.serving.limits import Limits, Rates
from flm_jax.serving.requests import (
    _NEUTRAL,
    _SETTINGS,
    LARGEST,
    OWN_FIELDS,
    PATHS,
    parse,
    read_request,
)

LIMITS = Limits(prompt=20, tokens=8, texts=4, stops=2)


def read(**fields):
    return read_request(fields, LIMITS)


def test_what_is_missing_has_defaults_and_the_rest_is_read():
    bare = read(prompt=None, seed=None)
    assert (bare.prompts, bare.n, bare.steps, bare.max_tokens) == (("",), 1, None, None)
    assert bare.seed != read().seed  # once in four billion times it is equal
    full = read(
        model="tales",
        prompt=["a\r\nb", "\ufeffc"],
        infill="{2}",
        max_tokens=8,
        n=2,
        steps="1/4",
        seed=2**32 - 1,
        stop="x",
        echo=True,
        stream=True,
        stream_options={"include_usage": True},
        user="me",
        sampler="confidence",
        temperature=1,
        best_of=2,
        frequency_penalty=0,
        logprobs=None,
    )
    assert full.prompts == ("a\nb", "c") and full.steps == Share(1, 4) and full.stop == ("x",)
    assert full.settings == {"temperature": 1} and full.sampler == "confidence"
    assert full.usage and full.stream and full.echo and full.seed == 2**32 - 1


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"promt": "a"}, 400, "unknown field 'promt'; did you mean 'prompt'?"),
        ({"prompt": 3}, 400, "got prompt=3; expected a text or a list of texts"),
        ({"prompt": [1, 2]}, 400, "ids of tokens are not read"),
        ({"prompt": []}, 400, "empty list"),
        ({"prompt": "a" * 21}, 422, "21 characters; expected at most 20"),
        ({"prompt": ["a"] * 5}, 422, "got 5 prompts; expected at most 4"),
        ({"prompt": ["a"] * 2, "n": 3}, 422, "6 texts; expected at most 4"),
        ({"infill": "a" * 21}, 422, "infill of 21"),
        ({"n": True}, 400, "got n=true; expected a whole number from 1"),
        ({"n": 0}, 400, "got n=0"),
        ({"n": 1.5}, 400, "got n=1.5"),
        ({"seed": -1}, 400, "got seed=-1"),
        ({"seed": 2**32}, 400, "got seed=4294967296"),
        ({"steps": "x"}, 400, "got steps=x"),
        ({"steps": 0}, 400, "got steps=0"),
        ({"steps": [1]}, 400, "got steps=[1]"),
        ({"max_tokens": 9}, 422, "got max_tokens=9; expected at most 8"),
        ({"max_tokens": -1}, 400, "got max_tokens=-1"),
        ({"stop": ["a", ""]}, 400, "none of them empty"),
        ({"stop": ["a", "b", "c"]}, 422, "got 3 stop strings"),
        ({"stream": "yes"}, 400, 'got stream="yes"; expected true or false'),
        ({"stream_options": {"usage": True}}, 400, "unknown stream_options"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty=0.5, which this server has not"),
        ({"best_of": 2}, 400, "best_of=2"),
        ({"best_of": True}, 400, "best_of=true"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias"),
        ({"weak": "/etc"}, 400, "only who starts the server names files"),
        ({"bigram_candidates": 65}, 422, "bigram_candidates=65; expected at most 64"),
        ({"model": 1}, 400, "got model=1; expected a text"),
    ],
)
def test_what_is_wrong_is_refused(fields, status, says):
    with pytest.raises(RequestError) as caught:
        read(**fields)
    assert caught.value.status == status and says in caught.value.message
    assert caught.value.body["error"]["type"] == "invalid_request_error"


def test_more_texts_than_may_wait_are_refused_for_good():
    few = Limits(texts=4, waiting=2)
    assert read_request({"n": 2}, few).n == 2
    for fields in ({"n": 3}, {"prompt": ["a"] * 3}, {"n": 2, "prompt": ["a", "b"], "stream": True}):
        with pytest.raises(RequestError, match="expected at most 2, as many as may wait") as caught:
            read_request(fields, few)
        assert caught.value.status == 422 and "retry" not in str(caught.value.headers).lower()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"3",
        b"null",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"\xff\xfe",
        b'{"n": ' + b"1" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
def test_what_is_no_object_is_refused(body):
    with pytest.raises(RequestError) as caught:
        parse(body)
    assert caught.value.status == 400 and "expected a" in caught.value.message
    assert "\n" not in caught.value.message and len(caught.value.message) < 400
    assert parse(b'{"a": "\\ud800"}')["a"] == "\ud800"


def test_no_setting_of_a_sampler_has_the_name_of_a_field():
    fields = {*OWN_FIELDS, *_NEUTRAL}
    assert not fields & _SETTINGS.keys() and len(fields) == len(OWN_FIELDS) + len(_NEUTRAL)
    assert sorted(PATHS) == ["bigrams", "policy", "reward", "weak"]
    # Whole numbers multiply the work of a step, or are bounded by the length of a row.
    whole = {key for key, one in _SETTINGS.items() if type(one.default) is int}
    assert whole == {*_REPEATS, *LARGEST, "tokens", "block_length", "refresh"}


def test_limits_are_checked_and_json_shows_errors():
    for wrong in ({"texts": 0}, {"rate": -1}, {"seconds": 0.0}):
        with pytest.raises(ValueError, match="got a limit of"):
            Limits(**wrong)
    error = RequestError(503, "full", code="queue_full", headers={"Retry-After": "2"})
    assert json.loads(json.dumps(error.body))["error"] == {
        "message": "full",
        "type": "overloaded_error",
        "param": None,
        "code": "queue_full",
    }


def test_a_client_has_a_burst_and_then_a_rate():
    now = [0.0]
    rates = Rates(0.5, 2, lambda: now[0])
    assert [rates.wait("a") for _ in range(3)] == [0, 0, 2]
    assert rates.wait("b") == 0
    now[0] = 1.0
    assert rates.wait("a") == 1
    now[0] = 2.0
    assert [rates.wait("a") for _ in range(2)] == [0, 2]
    now[0] = 100.0
    assert [rates.wait("a") for _ in range(3)] == [0, 0, 2]
    assert not any(Rates(0.0, 1).wait("a") for _ in range(5))
