"""Flags of the commands that sample, generated from the settings of all samplers.

--sampler=NAME chooses a sampler other than the model's own; --sampler.KEY=VALUE, or --KEY=VALUE for
short, changes one of its settings.
"""

from typing import Any

from absl import flags

from flm_jax.build.sampler import choose_sampler
from flm_jax.config.check import at_home
from flm_jax.core.settings import Setting, settings_of
from flm_jax.core.types import Config
from flm_jax.samplers.base import SamplerConfig
from flm_jax.samplers.registry import SAMPLERS

_NAME = flags.DEFINE_string(
    "sampler", None, f"Sampler to use: {', '.join(SAMPLERS)}; by default the model's own."
)
_DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def _all_settings() -> dict[str, tuple[Setting, list[str]]]:
    """Dict from names to a setting and the samplers that have it."""
    found: dict[str, tuple[Setting, list[str]]] = {}
    for name, sampler in SAMPLERS.items():
        for key, one in settings_of(sampler.settings).items():
            found.setdefault(key, (one, []))[1].append(name)
    return found


def _define(key: str, one: Setting, names: list[str]) -> tuple[flags.FlagHolder, ...]:
    """Defines the flags of a setting, under its full and its short name."""
    said = f"{one.help} Samplers: {', '.join(names)}."
    define = _DEFINE[type(one.default)]
    return define(f"sampler.{key}", None, said), define(key, None, f"Short for --sampler.{key}.")


_FLAGS = {key: _define(key, one, names) for key, (one, names) in _all_settings().items()}


def changes() -> dict[str, Any]:
    """Returns the settings that the command line gives."""
    found = {}
    for key, holders in _FLAGS.items():
        for holder in holders:
            if holder.value is not None:
                found[key] = at_home(holder.value)
    return found


def sampler_of(config: Config) -> SamplerConfig:
    """Returns the sampler of a model, with the changes of the command line.

    Raises:
      UserError: a sampler or a setting that the model does not have.
    """
    return choose_sampler(config, _NAME.value or "", **changes())
