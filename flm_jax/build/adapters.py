"""Builds llama networks of masked diffusion and their adaptation from configurations."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from flm_jax.build.flow import learnt_law
from flm_jax.build.times import current, inherited_times, saved_forms
from flm_jax.checkpoints.portable import named
from flm_jax.checkpoints.workdir import load_averages
from flm_jax.config.schema import settings
from flm_jax.config.upgrade import read_config
from flm_jax.core.errors import require
from flm_jax.core.types import Config, Params
from flm_jax.flows.gamma_state import GammaState
from flm_jax.interop import llada2, mlfm
from flm_jax.interop.llama import state_dict_from_params
from flm_jax.models.lora import AdapterConfig, join, merged, split

_EMBEDDINGS = ("table", "anchor")  # of a base that is trained, these stay as they are


def adapter_config(config: Config) -> AdapterConfig | None:
    """Settings of the adapters, or None if config.adapters.base names no model to adapt."""
    cfg = settings(config, "adapters")
    return cfg if cfg.base else None


def exported_tensors(config: Config, params: Params) -> dict[str, np.ndarray]:
    """Returns the tensors of a llama under the names of its reference.

    For masked flows, adapters of the authors' form on a network of SMDM's kind keep their names:
    the adapters alone, or with the full base if it is trained too. Other LoRA is merged into the
    matrices; the time conditioning, which cannot be merged, is stored beside them under
    adapters.NAME.

    Args:
      config: configuration of the model.
      params: parameters of the network, including adapters if it has any.
    """
    sizes, rest = settings(config, "model"), {}
    if cfg := adapter_config(config):
        if learnt_law(config) and mlfm.writes(cfg, params):
            whole = "head" in trained_params(config, params)
            return mlfm.state_dict_from_params(params, cfg, sizes.heads, sizes.groups, whole)
        params, rest = merged(params, cfg)
    write = llada2.state_dict_from_params if sizes.experts else state_dict_from_params
    state = write(params, sizes.heads, sizes.groups)
    return state | {f"adapters.{name}": np.asarray(x) for name, x in named(rest).items()}


def trained_params(config: Config, params: Params) -> Params:
    """Returns the part of a network's parameters that training changes.

    A trained base is float32: in bfloat16 its small updates would round to zero.
    """
    cfg = adapter_config(config)
    if cfg is None:
        return params
    base, adapters = split(params)
    if not cfg.base_lr:
        return adapters
    return join(jax.tree.map(_wide, _without_embeddings(base)), adapters)


def whole_params(config: Config, params: Params, frozen: Params) -> Params:
    """Combines trained and frozen parameters to all parameters of a network."""
    return params if adapter_config(config) is None else join(frozen, params)


def frozen_params(config: Config, base: Params) -> Params:
    """Returns the part of a base's parameters that stays frozen; of a map's teacher, all."""
    cfg = adapter_config(config)
    if cfg is None or not cfg.base_lr or cfg.two_time:
        return base
    return {name: base[name] for name in base if name in _EMBEDDINGS} | {"blocks": {}}


def started_params(fresh: Params, base: Params) -> Params:
    """Returns the initial `trained_params`, with what the base has of them taken from it.

    That are the parameters of a trained base, and the adapters of a masked flow for its flow map.

    Args:
      fresh: randomly initialised trained parameters.
      base: parameters of the base.
    """

    def taken(fresh: Params, known: Params) -> Params:
        found = {name: fresh[name] for name in fresh.keys() - known.keys()}
        for name in fresh.keys() & known.keys():
            x, like = known[name], fresh[name]
            # A copy, since the state is donated and the base is asked further.
            put = lambda x, like: jnp.copy(jax.device_put(x.astype(like.dtype), like.sharding))
            found[name] = taken(like, x) if isinstance(like, dict) else put(x, like)
        return found

    return taken(fresh, base)


def _without_embeddings(base: Params) -> Params:
    return {name: value for name, value in base.items() if name not in _EMBEDDINGS}


def _wide(x):
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding)
    return x.astype(jnp.float32)


def starting_adapters(
    config: Config, abstract: Params, place: Sharding
) -> tuple[Params, GammaState | None] | None:
    """Loads the averaged adapters of config.adapters.start, or returns None if it is not set.

    Args:
      abstract: shapes and shardings of the adapters.
      place: sharding of the state of learnt times.

    Returns:
      The adapters, with the base if both runs train it, and the state of learnt times that is
      inherited.

    Raises:
      UserError: no checkpoint there, one of other sizes or of another range of gamma, or one with a
        trained base for a run with a frozen base.
    """
    start = config["adapters"]["start"]
    if not start:
        return None
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), abstract
    )
    theirs = read_config(start)
    trained = settings(theirs, "adapters").base_lr > 0.0
    require(
        config["adapters"]["base_lr"] > 0.0 or not trained,
        f"config.adapters.start {start} trained its base with its adapters; expected "
        f"config.adapters.base_lr above 0, such as {theirs['adapters']['base_lr']}.",
    )
    shapes = shapes if trained else split(shapes)[1]
    params, _, times = load_averages(start, shapes, saved_forms(theirs, place))
    times = inherited_times(config, theirs, current(theirs, jax.device_get(times)))
    return jax.tree.map(jnp.copy, params), times
