"""Converts published checkpoints to configurations and parameters of workdirs."""

from typing import Any, NamedTuple

import jax
import numpy as np

from flm_jax.build.adapters import trained_params
from flm_jax.build.flow import learnt_law
from flm_jax.build.load import resolve_adapted
from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.config.schema import base_config
from flm_jax.core.errors import require
from flm_jax.core.types import Config, Params
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.flows.gamma_state import GammaState, state_of_knots
from flm_jax.interop.mlfm import Published
from flm_jax.models.lora import join

_BASE_LR = 1e-5  # at which the authors train the base in fine-tuning
_FINE_TUNING = {
    "embedding_weight": 10.0,
    "reduction": "inverse_length",
    "hide_special": True,
    "whole": 0.5,
}


def imported_config(
    model: dict[str, Any], objective: str, data: str = "", more: dict[str, Any] | None = None
) -> Config:
    """Returns a complete configuration of an imported network.

    Args:
      model: values of config.model.
      objective: name of the objective with which it was trained.
      data: value of config.data.path.
      more: values of other groups, nested.
    """
    config = base_config(model=model.get("name", "dit"), objective=objective).to_dict()
    config = with_values(config, {"model": model} | (more or {}))
    config["data"]["path"] = data
    return check(config)


def with_values(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Returns nested values with some of them replaced."""
    return values | {
        key: with_values(values[key], value) if isinstance(value, dict) else value
        for key, value in more.items()
    }


class Adapted(NamedTuple):
    """A published masked flow in the form of a workdir.

    Attributes:
      config: complete configuration; config.adapters.base is the workdir of its other parameters.
      params: trained parameters, which are those in the workdir.
      times: state of learnt times; None without one.
    """

    config: Config
    params: Params
    times: GammaState | None


def adapted(
    found: Published, where: str, base: Config, tokenizer: Tokenizer, length: int = 0
) -> Adapted:
    """Converts a checkpoint of a masked flow, given its base.

    Args:
      found: contents of the checkpoint.
      where: workdir of the base.
      base: configuration of the base.
      tokenizer: tokenizer of the base.
      length: length of sequences in tokens; 0 for the length of the checkpoint's training.

    Raises:
      UserError: a base of other sizes, or one that cannot be adapted.
    """
    _check_base(found, where, base)
    config = base_config(model="llama", objective="masked_flow").to_dict()
    config = with_values(config, found.values)
    config["model"]["length"] = min(length or config["model"]["length"], base["model"]["length"])
    config["adapters"]["base"] = where
    if found.base is not None:
        config["adapters"]["base_lr"] = _BASE_LR
        # Going on with it is going on with fine-tuning.
        config["objective"] |= _FINE_TUNING
    config = check(resolve_adapted(check(config), base, tokenizer))
    like = jax.eval_shape(make_network(config).init, jax.random.key(0))
    own = trained_params(config, like)
    params = found.adapters
    if found.base is not None:
        params = trained_params(config, join(found.base.params, params))
    params = jax.tree.map(lambda x, shape: np.asarray(x, shape.dtype), params, own)
    return Adapted(config, params, times_from_knots(config, found.knots))


def _check_base(found: Published, where: str, base: Config) -> None:
    """Refuses a base whose sizes differ from the checkpoint's."""
    n, model = found.sizes, base["model"]
    own = {"vocab_size": n.vocab, "dim": n.dim, "depth": n.depth, "heads": n.heads}
    wrong = [
        f"{key}: {model.get(key)!r}, checkpoint {value}"
        for key, value in own.items()
        if model.get(key) != value
    ]
    require(
        not wrong,
        f"the base {where} is not the one of this checkpoint ({'; '.join(wrong)}); give the "
        "workdir of the SMDM model that was adapted.",
    )


def times_from_knots(config: Config, knots: np.ndarray | None) -> GammaState | None:
    """State of learnt times from gamma at 101 quantiles; None without a learnt distribution."""
    law = learnt_law(config)
    return None if law is None or knots is None else state_of_knots(knots, law)
