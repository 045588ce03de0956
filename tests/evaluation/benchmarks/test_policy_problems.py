"""MBPP's training split as what policies of step sizes learn from."""

import numpy as np
import pytest

from flm_jax.config.check import check_policy
from flm_jax.config.schema import policy_config
from flm_jax.core.errors import UserError
from flm_jax.evaluation.benchmarks import policy_problems
from flm_jax.evaluation.benchmarks.policy_problems import mbpp_problems
from flm_jax.training.policy_trainer import check_policy_config
from helpers.benchmarks import mbpp_problem
from helpers.files import json_lines
from helpers.prompts import ROW_LENGTH, byte_model
from helpers.sandbox import LIMITS, opened

ANSWER = 36


def short(number):
    return mbpp_problem(number) | {"text": "+", "test_list": [f"assert f(y) == {number + 1}"]}


def asked(path, **values):
    config = policy_config()
    config.problems, config.answer_length, config.reward = str(path), ANSWER, "unit_tests"
    config.model, config.seconds = "somewhere", 10.0
    config.update(values)
    config = check_policy(config)
    check_policy_config(config)
    return config


@pytest.fixture
def model(monkeypatch):
    made = opened(LIMITS)
    monkeypatch.setattr(
        policy_problems, "open_sandbox", lambda limits, kind: made._replace(limits=limits)
    )
    return byte_model()


def test_programs_that_pass_are_rewarded(model, tmp_path):
    """Problems of the training split alone, each with its own tests and canvas."""
    path = json_lines(tmp_path / "mbpp.jsonl", *map(short, (11, 510, 601, 602, 600, 974, 975)))
    found = mbpp_problems(asked(path), model)
    given = found.given
    assert len(given.tokens) == 3 and ((~given.mask).sum(axis=1) == ANSWER).all()
    assert (given.visible.sum(axis=1) > ANSWER).all() and (~given.mask <= given.visible).all()
    first = model.tokenizer.decode(given.tokens[0][given.mask[0] & given.visible[0]])
    assert "assert f(y) == 602" in first and "975" not in first

    def written(place, text):
        row = given.tokens[place].copy()
        start = int(np.argmin(given.mask[place]))
        ids = [*model.tokenizer.encode(text).tolist(), model.tokenizer.eos_id]
        row[start : start + len(ids)] = ids
        return row

    right = [f"def f(x): return x + {n}" for n in (601, 602, 974)]
    rows = np.stack([written(2, right[2]), written(0, right[1]), written(0, right[0])])
    assert found.reward(rows, np.array([2, 0, 0])).tolist() == [1.0, 0.0, 1.0]
    assert len(mbpp_problems(asked(path, prompts=2), model).given.tokens) == 2


@pytest.mark.parametrize(
    "values, message",
    [
        ({"answer_length": 0}, "expected a file with an answer_length"),
        ({"reward": "exact_match"}, "reward exact_match; expected a file"),
        ({"problems": ""}, "or neither file nor answer_length"),
        ({"answer_length": ROW_LENGTH}, f"leaves room for config.answer_length = {ROW_LENGTH}"),
        ({"problems": "test.jsonl"}, "no problem of MBPP's training split; expected numbers"),
    ],
)
def test_problems_that_cannot_be_asked_are_refused(model, tmp_path, monkeypatch, values, message):
    monkeypatch.chdir(tmp_path)
    json_lines(tmp_path / "test.jsonl", short(11), short(600))
    path = json_lines(tmp_path / "mbpp.jsonl", short(601))
    with pytest.raises(UserError, match=message):
        mbpp_problems(asked(path, **values), model)
