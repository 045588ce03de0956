"""Loads the models that steering names: a weaker model, a trained reward."""

import dataclasses

import numpy as np

from flm_jax import build, rewards
from flm_jax.build import Model
from flm_jax.families import FAMILIES
from flm_jax.samplers.steering import Aids, Steering
from flm_jax.types import require


def _weak(model: Model, workdir: str) -> Model:
    """A weaker model of the same vocabulary, length and kind."""
    weak = build.load_model(workdir)
    require(
        weak.tokenizer.fingerprint == model.tokenizer.fingerprint
        and weak.net.vocab_size == model.net.vocab_size,
        f"weak={workdir} has another vocabulary than the model it is to guide; expected a model "
        "trained with the same tokenizer.",
    )
    goal = weak.config["objective"]["name"]
    require(
        goal not in FAMILIES
        and (weak.net.two_time, weak.net.any_order) == (model.net.two_time, model.net.any_order),
        f"weak={workdir} is a model of objective {goal}; expected a "
        f"{'flow map' if model.net.two_time else 'flow (objective denoising)'}, as the model that "
        "it is to guide.",
    )
    require(
        weak.net.max_length >= model.net.max_length,
        f"weak={workdir} was trained for {weak.net.max_length} tokens; expected at least "
        f"{model.net.max_length}.",
    )
    require(
        np.array_equal(weak.clock.t, model.clock.t),
        f"weak={workdir} was trained with another clock; expected one of the same "
        "config.objective.clock, and if that is 'embedded' of the same config.model.dim.",
    )
    return weak


def load(model: Model, steering: Steering) -> tuple[Aids, dict]:
    """What `steering` needs for a model: networks, and their parameters for run time.

    Raises:
      UserError: missing, damaged or unfitting models.
    """
    if model.config["objective"]["name"] in FAMILIES:
        return Aids(), {}  # their samplers refuse what steers flows
    weak, reward, extra = None, None, {}
    if steering.guidance != 1.0 and steering.weak:
        found = _weak(model, steering.weak)
        weak, extra["weak"] = dataclasses.replace(found.net, parallel=None), found.params
    elif steering.guidance != 1.0:
        weak = build.with_dropout(model, steering.weak_dropout)
    if steering.reward_scale:
        reward, extra["reward"] = rewards.load(steering.reward, model.tokenizer)
    return Aids(weak, reward), extra
