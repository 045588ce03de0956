"""The schema of configurations: their groups, and the settings of each name that a group can have.

The settings are defined beside the code that uses them and assembled here: `base_config` makes a
complete configuration for given names, and `settings` reads one group of it.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from flm_jax.config.training import EvalConfig, OptimConfig, PolicyRunConfig, TrainConfig
from flm_jax.core.errors import one_of, require
from flm_jax.core.files import as_json
from flm_jax.core.settings import plain, read_settings
from flm_jax.data.loading import DataConfig
from flm_jax.distributed.sharding import MeshConfig
from flm_jax.flows.registry import FLOWS, flows_of
from flm_jax.losses.alignment import AlignmentConfig
from flm_jax.losses.autoregressive import AutoregressiveConfig
from flm_jax.losses.denoising import DenoisingConfig
from flm_jax.losses.distillation.discrete_consistency import ConsistencyConfig
from flm_jax.losses.distillation.distribution_matching import MatchingConfig
from flm_jax.losses.distillation.endpoint import EndpointConfig
from flm_jax.losses.distillation.eulerian import EulerianConfig
from flm_jax.losses.distillation.lagrangian import LagrangianConfig
from flm_jax.losses.distillation.masked_distribution_matching import MaskedMatchingConfig
from flm_jax.losses.distillation.masked_flow_map import MaskedMapConfig
from flm_jax.losses.distillation.reinforce_matching import ReinforceConfig
from flm_jax.losses.distillation.semigroup import SemigroupConfig
from flm_jax.losses.distillation.through_time import ThroughTimeConfig
from flm_jax.losses.distillation.two_networks import MergeConfig, ResidualConfig
from flm_jax.losses.masked_diffusion import MaskedConfig
from flm_jax.losses.masked_flow import BridgeConfig
from flm_jax.losses.uniform_diffusion import UniformDiffusionConfig
from flm_jax.models.dit import DiTConfig
from flm_jax.models.llama import LlamaConfig
from flm_jax.models.lora import AdapterConfig
from flm_jax.models.transformer import TransformerConfig
from flm_jax.samplers.registry import SAMPLERS, samplers_of

# Groups that have a name: its settings are the other keys of the group.
MODELS: dict[str, type] = {"dit": DiTConfig, "causal": TransformerConfig, "llama": LlamaConfig}
OBJECTIVES: dict[str, type] = {
    "denoising": DenoisingConfig,
    "semigroup": SemigroupConfig,
    "lagrangian": LagrangianConfig,
    "eulerian": EulerianConfig,
    "endpoint": EndpointConfig,
    "residual": ResidualConfig,
    "merge": MergeConfig,
    "distribution_matching": MatchingConfig,
    "reinforce_matching": ReinforceConfig,
    "masked_diffusion": MaskedConfig,
    "through_time": ThroughTimeConfig,
    "uniform_diffusion": UniformDiffusionConfig,
    "discrete_consistency": ConsistencyConfig,
    "masked_flow": BridgeConfig,
    "masked_flow_map": MaskedMapConfig,
    "masked_distribution_matching": MaskedMatchingConfig,
    "alignment": AlignmentConfig,
    "autoregressive": AutoregressiveConfig,
}
NAMED = {
    "model": MODELS,
    "flow": {name: one.settings for name, one in FLOWS.items()},
    "objective": OBJECTIVES,
    "sampler": {name: one.settings for name, one in SAMPLERS.items()},
}
# Groups without one.
GROUPS: dict[str, type] = {
    "adapters": AdapterConfig,
    "data": DataConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
    "mesh": MeshConfig,
}


def defaults(group: str, name: str = "") -> dict[str, Any]:
    """Returns the default values of a group, with JSON's types."""
    if group not in NAMED:
        return as_json(plain(GROUPS[group]()))
    cls = NAMED[group][one_of(f"config.{group}.name", name, NAMED[group])]
    return {"name": name} | as_json(plain(cls()))


def base_config(
    *, model: str = "dit", flow: str = "", objective: str = "denoising", sampler: str = ""
) -> ConfigDict:
    """Returns a complete configuration with the default of every key; the model is tiny.

    Args:
      model: name of the network, a key of `MODELS`.
      flow: name of the flow, a key of `flows.registry.FLOWS`; "" for the objective's first.
      objective: name of the objective, a key of `OBJECTIVES`.
      sampler: name of the sampler, a key of `samplers.registry.SAMPLERS`; "" for the objective's
        first.

    Raises:
      UserError: an unknown name.
    """
    config = {"seed": 0, "model": defaults("model", model), "adapters": defaults("adapters")}
    config["data"] = defaults("data")
    config["flow"] = defaults("flow", flow or flows_of(objective)[0])
    config["objective"] = defaults("objective", objective)
    config["sampler"] = defaults("sampler", sampler or samplers_of(objective)[0])
    config |= {group: defaults(group) for group in ("optim", "train", "eval", "mesh")}
    return _as_config(config)


def policy_config() -> ConfigDict:
    """Returns a complete configuration of `train_policy`."""
    return _as_config(plain(PolicyRunConfig()))


def _as_config(values: Mapping[str, Any]) -> ConfigDict:
    """Converts lists of JSON to tuples, which a command line can replace as one value.

    In ml_collections a list stays a list, whatever is assigned to it later.
    """
    tuples = lambda value: tuple(value) if isinstance(value, list) else value
    return ConfigDict(
        {
            key: _as_config(value) if isinstance(value, dict) else tuples(value)
            for key, value in values.items()
        }
    )


def choose(config: ConfigDict, **names: str) -> ConfigDict:
    """Changes the names of groups of a configuration, and with them their settings.

    A key of both names keeps its value if that is not the old name's default. A flow or a sampler
    that the new objective does not have is replaced by that objective's first.

    Args:
      config: configuration, changed in place.
      names: new name of each group, such as objective="lagrangian".

    Returns:
      The same configuration.

    Raises:
      UserError: an unknown group or name.
    """
    for group, name in names.items():
        one_of("group with a name", group, NAMED)
        old = config[group].to_dict()
        if old["name"] == name:
            continue
        new, before = defaults(group, name), defaults(group, old["name"])
        kept = {
            key: value
            for key, value in old.items()
            if key in new and key != "name" and _changed(value, before.get(key))
        }
        with config.unlocked():
            config[group] = _as_config(new | kept)
        if group == "objective":
            _follow(config, name)
    return config


def _follow(config: ConfigDict, objective: str) -> None:
    for group, allowed in (("flow", flows_of(objective)), ("sampler", samplers_of(objective))):
        if config[group].name not in allowed:
            choose(config, **{group: allowed[0]})


def _changed(value: Any, default: Any) -> bool:
    return as_json(value) != default


def settings(config: Mapping[str, Any], group: str) -> Any:
    """Reads and checks the settings of one group of a configuration.

    Args:
      config: a complete configuration as a plain dict.
      group: key of `GROUPS` or `NAMED`.

    Returns:
      An instance of the settings class of the group, or of its name.

    Raises:
      UserError: an unknown name or key, a missing key, or a value that the key refuses.
    """
    values, where = dict(config[group]), f"config.{group}"
    if group not in NAMED:
        return read_settings(GROUPS[group], values, where)
    name = values.pop("name", None)
    require(isinstance(name, str), f"{where}.name is {name!r}; expected a name.")
    cls = NAMED[group][one_of(f"{where}.name", name, NAMED[group])]
    check_owned(group, name, values)
    return read_settings(cls, values, where)


def check_owned(
    group: str, name: str, keys: Mapping[str, Any] | list[str], where: str = ""
) -> None:
    """Refuses keys of a group that belong to names of it other than `name`.

    Args:
      group: name of a group of `NAMED`.
      name: chosen name of the group.
      keys: keys of the group.
      where: label of the group in the message; "" for config.GROUP.

    Raises:
      UserError: such a key; the message says to which name it belongs.
    """
    own = plain(NAMED[group][name]())
    place = where or f"config.{group}"
    for key in (key for key in keys if key not in own):
        owners = [other for other, cls in NAMED[group].items() if key in plain(cls())]
        require(
            not owners,
            f"{place} {name} has no {key!r}: that is a key of "
            f"{' and '.join(owners)}; drop it, or give the name {owners[0] if owners else ''}.",
        )
        groups = [g for g in NAMED if any(key in plain(cls()) for cls in NAMED[g].values())]
        owner = f"config.{groups[0]}" if groups else ""
        require(
            not groups or bool(where),
            f"{place} {name} has no {key!r}: that is a key of {owner}; set {owner}.{key}.",
        )
