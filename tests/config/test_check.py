"""Unknown, mistyped and missing keys, and what a run may be continued under."""

import copy

import pytest

from flm_jax.config.check import check, check_resumable
from flm_jax.config.upgrade import upgrade
from flm_jax.core.errors import UserError
from helpers.runs import baseline_config, tiny_config


def test_unknown_key_names_the_nearest():
    config = tiny_config()
    with config.unlocked():
        config.optim.learning_rat = 1.0
    with pytest.raises(UserError, match="unknown key in config.optim 'learning_rat'.*valid: "):
        check(config)
    config = tiny_config()
    with config.unlocked():
        config.train.stepz = 1
    with pytest.raises(UserError, match="did you mean 'steps'"):
        check(config)


def test_wrong_type_is_named():
    config = tiny_config().to_dict()
    config["train"]["steps"] = "many"
    with pytest.raises(UserError, match="config.train.steps must be int, got 'many'"):
        check(config)


def test_a_run_older_than_a_key_continues_with_its_default():
    config = check(baseline_config("masked_diffusion"))
    saved = copy.deepcopy(config)
    del saved["objective"]["time_conditioning"]
    saved = upgrade(saved)
    check_resumable(saved, config, "W")
    config["objective"]["time_conditioning"] = True
    with pytest.raises(UserError, match="time_conditioning: False -> True"):
        check_resumable(saved, config, "W")
