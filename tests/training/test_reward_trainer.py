"""The trained reward goes through the loop of all training: stopped, continued, refused."""

import signal

import numpy as np
import pytest

from flm_jax.core.errors import Stopped, UserError
from flm_jax.training import reward_trainer
from flm_jax.training.reward_trainer import train_text_reward
from helpers.runs import run, tiny_config

HOW = {"steps": 6, "batch": 16, "lr": 3e-3, "seed": 0}


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward") / "flow"
    config = tiny_config()
    config.train.steps = 1
    run(config, folder)
    return str(folder)


def weights(folder):
    with np.load(folder / "weights.npz") as file:
        return {name: file[name] for name in file.files}


def test_a_stopped_training_continues_bit_for_bit(flow, tmp_path, monkeypatch, capsys):
    found = train_text_reward(flow, "san", str(tmp_path / "whole"), **HOW)
    assert found.accuracy > 0.5 and found.loss < 1.0
    match, calls = reward_trainer.matches, []

    def stopping(tokens, *more):
        calls.append(len(tokens))
        if len(calls) == 4:  # of the held-out texts, and of the third step
            signal.raise_signal(signal.SIGTERM)
        return match(tokens, *more)

    with monkeypatch.context() as patched:
        patched.setattr(reward_trainer, "matches", stopping)
        with pytest.raises(Stopped):
            train_text_reward(flow, "san", str(tmp_path / "parts"), **HOW)
    assert "SIGTERM: saved step 3; run the same command" in capsys.readouterr().out
    assert not (tmp_path / "parts/reward.json").exists()
    again = train_text_reward(flow, "san", str(tmp_path / "parts"), **HOW)
    assert again == found
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value)


def test_another_configuration_is_refused(flow, tmp_path):
    out = str(tmp_path / "out")
    train_text_reward(flow, "san", out, **(HOW | {"steps": 1}))
    before = weights(tmp_path / "out")
    with pytest.raises(UserError, match="lr: 0.003 -> 0.1.*give a new --out"):
        train_text_reward(flow, "san", out, **(HOW | {"lr": 0.1}))
    with pytest.raises(UserError, match="match: 'san' -> 'new'"):
        train_text_reward(flow, "new", out, **HOW)
    for name, value in weights(tmp_path / "out").items():
        np.testing.assert_array_equal(before[name], value)
    train_text_reward(flow, "san", out, **(HOW | {"steps": 2}))  # more steps may be asked for


def test_steps_that_are_not_finite_change_nothing(flow, tmp_path, monkeypatch):
    objective = reward_trainer.classifier_objective

    def spoilt(made):
        loss = objective(made)

        def infinite(*arguments):
            value, metrics = loss(*arguments)
            return value * np.inf, metrics

        return infinite

    monkeypatch.setattr(reward_trainer, "classifier_objective", spoilt)
    monkeypatch.setattr(reward_trainer, "_MAX_SKIPPED", 2)
    with pytest.raises(UserError, match="2 steps in a row had a non-finite loss or gradient"):
        train_text_reward(flow, "san", str(tmp_path / "out"), **HOW)
    assert list((tmp_path / "out").glob("bad_batch_2*.npz"))
