"""Llama networks of masked diffusion, and their adaptation, from configurations."""

from typing import Any

from flm_jax.defaults import base_config
from flm_jax.models.adapters import AdapterConfig
from flm_jax.models.attention import AttentionPlan
from flm_jax.models.llama import LlamaConfig, llama
from flm_jax.types import Network, require, unknown_name

Config = dict[str, Any]

_PARAM_DTYPES = ("float32", "bfloat16")


def adapter_config(config: Config) -> AdapterConfig | None:
    """Sizes of the adapters, or None where config.adapters.base names no model to adapt."""
    given = config.get("adapters", {})
    if not given.get("base"):
        return None
    return AdapterConfig(**{k: v for k, v in given.items() if k not in ("base", "start")})


def make_llama(cfg: Config, plan: AttentionPlan, goal: str) -> Network:
    """A network of model.name llama; `cfg` holds config.model, "llama" and "adapters"."""
    more = base_config().to_dict()["model"]["llama"] | cfg.pop("llama")
    fits = "masked" if cfg["adapters"] is None else "masked_bridge"
    require(
        goal == fits,
        f"objective {goal} with {'no ' if fits == 'masked' else ''}adapters: a llama learns by "
        "objective masked, and by masked_bridge with config.adapters.base set, whose adapters "
        "tell it the time.",
    )
    require(not cfg["two_time"], "a llama network has one time; set config.model.two_time = False.")
    if more["param_dtype"] not in _PARAM_DTYPES:
        raise unknown_name("config.model.llama.param_dtype", more["param_dtype"], _PARAM_DTYPES)
    del cfg["two_time"], cfg["cond_dim"]
    return llama(LlamaConfig(max_length=cfg.pop("length"), **cfg, **more), plan)
