"""Checks a ConfigDict against the defaults, once, before any work."""

import json
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from flm_jax.config.schema import base_config
from flm_jax.core.errors import UserError, check_seed, one_of, require
from flm_jax.core.paths import expanded

# What may change when a run is continued in its workdir; all else decides what is learnt.
_FREE = (
    "train.steps",
    "train.seconds",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_skipped",
    "train.watchdog_seconds",
)
_FREE_GROUPS = ("eval", "mesh")
_FREE_MODEL = (
    "model.attention",
    "model.remat",
    "model.scan_blocks",
    "model.loss_tile",
    "data.threads",
    "data.prefetch",
)


def check(
    config: ConfigDict | dict[str, Any], complete: Callable[[], ConfigDict] = base_config
) -> dict[str, Any]:
    """Plain nested dict of a complete configuration, as JSON would give it back.

    Args:
      config: what is to be checked.
      complete: makes a configuration with all keys and their types.

    Raises:
      UserError: unknown key (with the nearest valid one), missing key, value of another type.
    """
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    plain, valid = json.loads(json.dumps([plain, complete().to_dict()]))
    _compare(plain, valid, "config")
    check_seed(plain["seed"], "config.seed")
    return at_home(plain)


def at_home(value: Any) -> Any:
    """A configuration whose paths have `~` expanded: no other value begins with it."""
    if isinstance(value, dict):
        return {key: at_home(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [at_home(item) for item in value]
    return expanded(value) if isinstance(value, str) else value


def _compare(got: dict[str, Any], valid: dict[str, Any], where: str) -> None:
    for key, value in got.items():
        one_of(f"key in {where}", key, valid)
        default = valid[key]
        if isinstance(default, dict):
            require(isinstance(value, dict), f"{where}.{key} must hold keys, got {value!r}.")
            _compare(value, default, f"{where}.{key}")
        else:
            number = isinstance(default, float) and type(value) is int
            require(
                type(value) is type(default) or number,
                f"{where}.{key} must be {type(default).__name__}, got {value!r}.",
            )
    for key in valid:
        require(
            key in got, f"{where}.{key} is missing; start from a configuration of flm_jax.config."
        )


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    out = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        out |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return out


def check_resumable(saved: dict[str, Any], config: dict[str, Any], workdir: str) -> None:
    """Refuses to continue a run under a configuration that would change what it learns.

    A key that the saved configuration is too old to have counts as its default.
    """
    defaults = json.loads(json.dumps(base_config().to_dict()))
    old, new = flat(defaults) | flat(saved), flat(config)
    changed = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and key not in _FREE + _FREE_MODEL
        and key.split(".")[0] not in _FREE_GROUPS
    ]
    if changed:
        raise UserError(
            f"workdir {workdir} holds a run with another configuration ({'; '.join(changed)}); "
            "restore these values, or give a new --workdir."
        )
