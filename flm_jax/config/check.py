"""Checks a configuration once, before any work starts."""

from typing import Any

from ml_collections import ConfigDict

from flm_jax.config.schema import GROUPS, NAMED, settings
from flm_jax.config.training import PolicyRunConfig
from flm_jax.core.errors import UserError, check_seed, one_of, require
from flm_jax.core.files import as_json
from flm_jax.core.paths import expanded
from flm_jax.core.settings import read_settings
from flm_jax.core.types import Config
from flm_jax.flows.registry import flows_of
from flm_jax.samplers.registry import samplers_of

# What may change when a run is continued in its workdir; all else decides what is learnt.
_FREE = (
    "train.steps",
    "train.seconds",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_skipped",
    "train.watchdog_seconds",
    "model.tokens",  # by the tokenizer, which is that of the run
    "model.attention",
    "model.remat",
    "model.scan_blocks",
    "model.loss_tile",
    "data.threads",
    "data.prefetch",
)
_FREE_GROUPS = ("eval", "mesh", "sampler")


def check(config: ConfigDict | Config) -> Config:
    """Checks a complete configuration and returns it as a plain nested dict, with JSON's types.

    Raises:
      UserError: an unknown key (the message has the nearest valid one), a missing key, a key that
        belongs to another name, or a value of another type, not among the choices or out of its
        range.
    """
    plain = _plain(config)
    valid = ("seed", *NAMED, *GROUPS)
    for key in plain:
        one_of("key in config", key, valid)
    for key in valid:
        require(
            key in plain, f"config.{key} is missing; start from a configuration of flm_jax.config."
        )
    for group in (*NAMED, *GROUPS):
        value = plain[group]
        require(isinstance(value, dict), f"config.{group} must hold keys, got {value!r}.")
        settings(plain, group)
    goal, *chosen = (plain[group]["name"] for group in ("objective", "flow", "sampler"))
    kinds = (("flow", flows_of(goal)), ("sampler", samplers_of(goal)))
    for (group, valid), name in zip(kinds, chosen):
        require(
            name in valid,
            f"config.{group}.name is {name!r}, which models of objective {goal} do not have; "
            f"expected {' or '.join(valid)}.",
        )
    check_seed(plain["seed"], "config.seed")
    return at_home(plain)


def check_policy(config: ConfigDict | Config) -> Config:
    """Checks a configuration of `train_policy`, as `check` does for `train`."""
    plain = _plain(config)
    read_settings(PolicyRunConfig, plain, "config")
    check_seed(plain["seed"], "config.seed")
    return at_home(plain)


def _plain(config: ConfigDict | Config) -> Config:
    return as_json(config.to_dict() if isinstance(config, ConfigDict) else config)


def at_home(value: Any) -> Any:
    """Returns a configuration with `~` expanded in paths; no other value begins with it."""
    if isinstance(value, dict):
        return {key: at_home(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [at_home(item) for item in value]
    return expanded(value) if isinstance(value, str) else value


def flat(config: Config, prefix: str = "") -> Config:
    """Flattens nested dicts: {"a": {"b": 1}} becomes {"a.b": 1}."""
    out = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        out |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return out


def check_resumable(saved: Config, config: Config, workdir: str) -> None:
    """Refuses to continue a run under a configuration that would change what it learns.

    Args:
      saved: configuration of the run, from `upgrade.read_config`.
      config: configuration to continue with.
      workdir: workdir of the run, for the message.
    """
    old, new = flat(saved), flat(config)
    changed = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and key not in _FREE
        and key.split(".")[0] not in _FREE_GROUPS
    ]
    if changed:
        raise UserError(
            f"workdir {workdir} holds a run with another configuration ({'; '.join(changed)}); "
            "restore these values, or give a new --workdir."
        )
