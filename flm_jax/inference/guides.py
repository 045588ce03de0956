"""Opens the helper models that samplers name: a weaker model, a reward or a step policy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.build.bigrams import model_bigrams, model_trigrams
from flm_jax.build.families.flow import shared_settings
from flm_jax.build.families.registry import family, objective_name
from flm_jax.build.load import Model, load_model, with_dropout
from flm_jax.core.errors import require
from flm_jax.core.paths import expanded
from flm_jax.flows.flow import ClockTold
from flm_jax.flows.noise import UnitNoise
from flm_jax.inference.step_policy import load_step_policy, stepper
from flm_jax.inference.text_reward import load_text_reward
from flm_jax.samplers.base import SamplerConfig
from flm_jax.samplers.bigram import BigramConfig
from flm_jax.samplers.guides import Guides
from flm_jax.samplers.steering import GuidedConfig, RewardedConfig
from flm_jax.samplers.x_prediction import XPredictionConfig


def _weak(model: Model, workdir: str) -> Model:
    """Opens a weaker model of the same vocabulary, length and kind."""
    weak = load_model(workdir, attention=_attention(model))
    require(
        weak.tokenizer.fingerprint == model.tokenizer.fingerprint
        and weak.net.vocab_size == model.net.vocab_size,
        f"weak={workdir} has another vocabulary than the model it is to guide; expected a model "
        "trained with the same tokenizer.",
    )
    require(
        family(weak.config).from_noise and weak.net.two_time == model.net.two_time,
        f"weak={workdir} is a model of objective {objective_name(weak.config)}; expected a "
        f"{'flow map' if model.net.two_time else 'flow (objective denoising)'}, as the model that "
        "it is to guide.",
    )
    require(
        weak.net.any_order == model.net.any_order,
        f"weak={workdir} was trained {'with' if weak.net.any_order else 'without'} clean context; "
        f"expected a model trained {'with' if model.net.any_order else 'without'} it, as the model "
        "that it is to guide.",
    )
    require(
        weak.net.max_length >= model.net.max_length,
        f"weak={workdir} was trained for {weak.net.max_length} tokens; expected at least "
        f"{model.net.max_length}.",
    )
    require(
        _same_flow(weak, model),
        f"weak={workdir} was trained with another flow; expected one of the same config.flow, and "
        "if its clock is 'embedded' of the same config.model.dim.",
    )
    # A model that is being trained has no parameters yet, and other embeddings at every step.
    require(
        not isinstance(model.flow.noise, UnitNoise)
        or (
            bool(model.params)
            and np.array_equal(weak.net.table(weak.params), model.net.table(model.params))
        ),
        f"weak={workdir} has other embeddings, as any model has for one in training; with "
        "config.flow.noise 'unit' two models see the same state only with the same: give "
        "weak_dropout=RATE.",
    )
    return weak


def _attention(model: Model) -> str | None:
    """Kernel of a second network beside a model: on several devices "xla", which XLA splits."""
    leaves = jax.tree.leaves(model.params)
    count = len(leaves[0].sharding.device_set) if leaves else jax.device_count()
    return "xla" if count > 1 else None


def _same_flow(weak: Model, model: Model) -> bool:
    """Whether both have the same path and the same time variable."""
    told, other = (x.flow.told for x in (weak, model))
    if isinstance(told, ClockTold) and isinstance(other, ClockTold):
        same = np.array_equal(told.clock.t, other.clock.t)
    else:
        same = told == other
    return same and shared_settings(weak.config) == shared_settings(model.config)


def load_guides(model: Model, cfg: SamplerConfig) -> tuple[Guides, dict]:
    """Opens the helper models that the settings of a sampler name.

    Args:
      model: model to sample from.
      cfg: settings of its sampler.

    Returns:
      The helpers, and their parameters for the sampling program.

    Raises:
      UserError: a helper that is missing, damaged or does not fit the model.
    """
    if isinstance(cfg, XPredictionConfig) and cfg.policy:
        return Guides(stepper=stepper(load_step_policy(expanded(cfg.policy)))), {}
    weak, reward, extra = None, None, {}
    if isinstance(cfg, BigramConfig) and cfg.bigram:
        extra["bigrams"] = jax.tree.map(jnp.asarray, model_bigrams(model, cfg.bigrams))
        if cfg.trigram:
            extra["trigrams"] = jax.tree.map(jnp.asarray, model_trigrams(model, cfg.bigrams))
    if isinstance(cfg, GuidedConfig) and cfg.guidance != 1.0 and not cfg.by_prompt:
        if cfg.weak:
            found = _weak(model, cfg.weak)
            weak = dataclasses.replace(found.net, parallel=None)
            # On no device in particular, so that they go to those of the model.
            extra["weak"] = jax.tree.map(jnp.asarray, jax.device_get(found.params))
        else:
            weak = with_dropout(model, cfg.weak_dropout, _attention(model))
    if isinstance(cfg, RewardedConfig) and cfg.reward_scale:
        reward, extra["reward"] = load_text_reward(cfg.reward, model.tokenizer)
    return Guides(weak, reward), extra
