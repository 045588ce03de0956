"""Llama networks of masked diffusion, and their adaptation, from configurations."""

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
from flm_jax.core.types import Config, Params
from flm_jax.flows.gamma_state import GammaState
from flm_jax.interop import llada2, mlfm
from flm_jax.interop.llama import state_dict_from_params
from flm_jax.models.lora import AdapterConfig, join, merged, split


def adapter_config(config: Config) -> AdapterConfig | None:
    """Sizes of the adapters, or None where config.adapters.base names no model to adapt."""
    cfg = settings(config, "adapters")
    return cfg if cfg.base else None


def exported_tensors(config: Config, params: Params) -> dict[str, np.ndarray]:
    """Tensors of a llama under the names of its reference.

    Of masked flows, adapters of the authors' form on a network of SMDM's kind keep their names:
    they alone, or with all of the base where it is trained too. Other LoRA is merged into the
    matrices; the time conditioning, which cannot be, stands beside them under adapters.NAME.

    Args:
      params: the network's, adapters included where it has any.
    """
    sizes, rest = settings(config, "model"), {}
    if cfg := adapter_config(config):
        if learnt_law(config) and mlfm.writes(cfg, params):
            whole = "head" in trained_params(config, params)
            return mlfm.state_dict_from_params(params, cfg, sizes.heads, sizes.groups, whole)
        params, rest = merged(params, cfg)
    if sizes.experts:
        return llada2.state_dict_from_params(params, sizes.heads, sizes.groups)
    state = state_dict_from_params(params, sizes.heads, sizes.groups)
    return state | {f"adapters.{name}": np.asarray(x) for name, x in named(rest).items()}


def trained_params(config: Config, params: Params) -> Params:
    """The part of a network's parameters that training changes."""
    return params if adapter_config(config) is None else split(params)[1]


def whole_params(config: Config, params: Params, frozen: Params) -> Params:
    """A network's parameters from those that are trained and the frozen ones."""
    return params if adapter_config(config) is None else join(frozen, params)


def starting_adapters(
    config: Config, abstract: Params, place: Sharding
) -> tuple[Params, GammaState | None] | None:
    """Averaged adapters of config.adapters.start, or None where it is not set.

    Args:
      abstract: shapes and shardings of the adapters.
      place: sharding of what is learnt of the law of times.

    Returns:
      The adapters, and what is to be inherited of what they learnt of the law of times.

    Raises:
      UserError: no checkpoint there, or one of other sizes or of another range of gamma.
    """
    start = config["adapters"]["start"]
    if not start:
        return None
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), abstract
    )
    theirs = read_config(start)
    params, _, times = load_averages(start, shapes, saved_forms(theirs, place))
    times = inherited_times(config, theirs, current(theirs, jax.device_get(times)))
    return jax.tree.map(jnp.copy, params), times
