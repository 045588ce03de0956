"""Llama networks of masked diffusion, and their adaptation, from configurations."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.data.tokenizer_base import Tokenizer
from flm_jax.defaults import base_config
from flm_jax.flows.clocks import Clock
from flm_jax.flows.gamma_schedule import GammaConfig, fresh_state, update_state
from flm_jax.interop import llada2
from flm_jax.interop.llama import state_dict_from_params
from flm_jax.losses.masked_bridge import BridgeConfig, bridge_loss
from flm_jax.models.adapters import AdapterConfig, join, merged, split
from flm_jax.models.attention import AttentionPlan
from flm_jax.models.experts import ExpertsConfig
from flm_jax.models.llama import LlamaConfig, llama
from flm_jax.training.checkpoint import load_ema
from flm_jax.training.folder import named
from flm_jax.training.step import Objective, Tracker
from flm_jax.types import Network, Params, require, unknown_name

Config = dict[str, Any]

_PARAM_DTYPES = ("float32", "bfloat16")
# How a base is computed; all else of config.model is the base's own.
_COMPUTE = ("length", "dropout", "attention", "dtype", "remat", "scan_blocks", "loss_tile")


def adapter_config(config: Config) -> AdapterConfig | None:
    """Sizes of the adapters, or None where config.adapters.base names no model to adapt."""
    given = config.get("adapters", {})
    if not given.get("base"):
        return None
    return AdapterConfig(**{k: v for k, v in given.items() if k not in ("base", "start")})


def make_llama(cfg: Config, plan: AttentionPlan, goal: str) -> Network:
    """A network of model.name llama; `cfg` holds config.model, "llama" and "adapters"."""
    defaults, given = base_config().to_dict()["model"]["llama"], cfg.pop("llama")
    more = defaults | given
    experts = defaults["experts"] | given.get("experts", {})
    more["experts"] = ExpertsConfig(**experts) if experts["number"] else None
    adapted = cfg["adapters"] is not None
    require(
        goal in ("alignment", "masked_bridge" if adapted else "masked"),
        f"objective {goal} with {'' if adapted else 'no '}adapters: a llama learns by objective "
        "masked, by masked_bridge with config.adapters.base set, whose adapters tell it the time, "
        "and by alignment either way.",
    )
    require(not cfg["two_time"], "a llama network has one time; set config.model.two_time = False.")
    if more["param_dtype"] not in _PARAM_DTYPES:
        raise unknown_name("config.model.llama.param_dtype", more["param_dtype"], _PARAM_DTYPES)
    del cfg["two_time"], cfg["cond_dim"]
    return llama(LlamaConfig(max_length=cfg.pop("length"), **cfg, **more), plan)


def resolve(config: Config, base: Config, tokenizer: Tokenizer) -> Config:
    """A configuration of adaptation with the sizes of its base and the tokenizer's EOS filled in.

    Raises:
      UserError: the base is no masked diffusion of a llama, or shorter than config.model.length.
    """
    where, goal = config["adapters"]["base"], base["objective"]["name"]
    model, given = base["model"], config["model"]
    require(
        goal == "masked" and model["name"] == "llama",
        f"config.adapters.base {where} is a {model['name']} of objective {goal}; expected a llama "
        "of objective masked.",
    )
    require(
        given["length"] <= model["length"],
        f"config.model.length is {given['length']}, config.adapters.base {where} was trained for "
        f"{model['length']} tokens; set it to that or less.",
    )
    bridge = config["bridge"]
    if bridge["eos_id"] < 0 and tokenizer.eos_id is not None:
        bridge = bridge | {"eos_id": tokenizer.eos_id}
    own = {key: given[key] for key in _COMPUTE}
    return config | {"model": given | model | own, "bridge": bridge}


def check_tokenizer(config: Config, tokenizer: Tokenizer, base: Tokenizer) -> None:
    """Refuses data of another tokenizer than the base's."""
    require(
        tokenizer.fingerprint == base.fingerprint,
        f"the data's tokenizer ({tokenizer.fingerprint[:12]}) is not that of config.adapters.base "
        f"({base.fingerprint[:12]}); prepare the data with it (--tokenizer="
        f"{config['adapters']['base']}/tokenizer).",
    )


def bridge_config(config: Config) -> BridgeConfig:
    """The masked bridge of a configuration."""
    given = config["bridge"]
    kinds = ("logistic", "empirical")
    if given["learnt"] not in kinds:
        raise unknown_name("config.bridge.learnt", given["learnt"], kinds)
    for name in ("uniform", "normal", "whole"):
        require(
            0.0 <= given[name] <= 1.0,
            f"config.bridge.{name} is {given[name]}; expected a share in [0, 1].",
        )
    require(
        given["uniform"] + given["normal"] <= 1.0,
        f"config.bridge.uniform {given['uniform']} and normal {given['normal']} add up to more "
        "than 1; the rest is the learnt share.",
    )
    require(
        given["sigma"] > 0.0 and given["refit_every"] >= 1 and given["bins"] >= 8,
        f"config.bridge has sigma {given['sigma']}, refit_every {given['refit_every']}, bins "
        f"{given['bins']}; expected more than 0, at least 1, at least 8.",
    )
    gamma = ("uniform", "normal", "learnt", "bins", "decay", "refit_every")
    return BridgeConfig(
        gamma=GammaConfig(**{name: given[name] for name in gamma}),
        **{name: value for name, value in given.items() if name not in gamma},
    )


def bridge_objective(
    config: Config, net: Network, clock: Clock, teacher: Network | None
) -> Objective:
    """The objective of adapters, whose base stands in the place of a teacher."""
    del clock
    require(
        teacher is not None and adapter_config(config) is not None,
        "objective masked_bridge trains adapters; set config.adapters.base to the workdir of a "
        "masked diffusion model (config.model.name llama, objective masked).",
    )
    cfg = bridge_config(config)

    def objective(params, frozen, batch, key, rows):
        whole = join(frozen.teacher, params)
        return bridge_loss(whole, batch, key, net=net, cfg=cfg, state=frozen.tracked, rows=rows)

    return objective


def tracker(config: Config) -> Tracker | None:
    """What the objective keeps count of, if anything."""
    if config["objective"]["name"] != "masked_bridge":
        return None
    cfg = bridge_config(config).gamma
    return Tracker(functools.partial(fresh_state, cfg), functools.partial(update_state, cfg=cfg))


def exported(config: Config, params: Params) -> dict[str, np.ndarray]:
    """Tensors of a llama under the names of its reference.

    LoRA is merged into the matrices; the time conditioning of adapters, which cannot be, stands
    beside them under adapters.NAME.

    Args:
      params: the network's, adapters included where it has any.
    """
    sizes, rest = config["model"], {}
    if cfg := adapter_config(config):
        params, rest = merged(params, cfg)
    groups = sizes["llama"]["kv_heads"] or sizes["heads"]
    if sizes["llama"].get("experts", {"number": 0})["number"]:
        return llada2.state_dict_from_params(params, sizes["heads"], groups)
    state = state_dict_from_params(params, sizes["heads"], groups)
    return state | {f"adapters.{name}": np.asarray(x) for name, x in named(rest).items()}


def trained(config: Config, params: Params) -> Params:
    """The part of a network's parameters that training changes."""
    return params if adapter_config(config) is None else split(params)[1]


def whole(config: Config, params: Params, frozen: Params) -> Params:
    """A network's parameters from those that are trained and the frozen ones."""
    return params if adapter_config(config) is None else join(frozen, params)


def started(config: Config, abstract: Params) -> Params | None:
    """Averaged adapters of config.adapters.start, or None where it is not set.

    Args:
      abstract: shapes and shardings of the adapters.
    """
    start = config["adapters"]["start"]
    if not start:
        return None
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), abstract
    )
    return jax.tree.map(jnp.copy, load_ema(start, shapes)[0])
