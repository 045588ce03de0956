"""The flag --config: a file of configs/ or a recipe's name, and overrides of its keys.

Names are applied first, wherever they stand on the command line: --config.objective.name=lagrangian
gives the group the settings of that name, and the other overrides then apply to those.
"""

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import ConfigFileFlagParser, DEFINE_config_file

from flm_jax.cli.recipes import broken, located, original, unreadable
from flm_jax.config.schema import NAMED, check_owned, choose
from flm_jax.core.errors import UserError, one_of, require

flags.disclaim_key_flags()  # they are those of the command that defines them
_OVERRIDE = re.compile(r"--?(?:no)?config\.([\w.]+)(?:=(.*))?$", re.DOTALL)


def DEFINE_config(help: str = "File with get_config(), or a recipe: owt/flm.") -> flags.FlagHolder:
    """Defines --config; `given_config` reads it."""
    holder = DEFINE_config_file("config", None, help)
    flags.FLAGS["config"].parser = _Parser("config")
    return holder


def given_config(flag: flags.FlagHolder) -> dict[str, Any]:
    """Returns the configuration that a --config flag names, as a plain dict.

    Raises:
      UserError: no --config, or one that cannot be read.
    """
    require(
        flag.value is not None,
        "no --config; expected a file or the name of a recipe, such as owt/flm.",
    )
    try:
        return flag.value.to_dict()
    except OSError as error:  # ml_collections keeps a missing file for the first use
        raise unreadable(error) from error


class _Parser(ConfigFileFlagParser):
    """Parser that reads the file, then applies the names of the command line to its groups."""

    def parse(self, path: str) -> Any:
        try:
            path = located(path)
        except UserError as error:
            raise flags.Error(str(error)) from error
        config = _read(super().parse, path)
        if isinstance(config, ConfigDict):
            try:
                for keys, value in overrides(sys.argv):
                    if value is not None and keys[-1] == "name" and keys[-2:-1][0] in NAMED:
                        choose(_inside(config, keys[:-2]), **{keys[-2]: value})
                for keys, _ in overrides(sys.argv):
                    _check_key(config, keys)
            except UserError as error:
                raise flags.Error(str(error)) from error
        return config


def _read(parse: Callable[[str], Any], path: str) -> Any:
    """Returns the content of a configuration file; errors are raised as errors of the flag."""
    try:
        config = parse(path)
        whole = getattr(config, "to_dict", None)  # of a file that is missing it raises OSError
    except OSError:
        return parse(path)
    except UserError as error:
        raise flags.Error(f"--config={path}: {original(error)}") from error
    except Exception as error:
        raise flags.Error(str(broken(path, error))) from error
    if whole is None:
        raise flags.Error(
            f"--config cannot be read: get_config() of {path} returns a {type(config).__name__}; "
            "expected a configuration, such as flm_jax.config.schema.base_config() makes."
        )
    return config


def overrides(argv: list[str]) -> Iterator[tuple[list[str], str | None]]:
    """Yields (keys, value) of each --config.A.B=VALUE; the value may also be the next word."""
    for word, following in zip(argv, [*argv[1:], None]):
        if found := _OVERRIDE.match(word):
            value = found[2]
            if value is None and following is not None and not following.startswith("-"):
                value = following
            yield found[1].split("."), value


def _inside(config: ConfigDict, keys: list[str]) -> ConfigDict:
    for at, key in enumerate(keys):
        one_of(f"config key {'.'.join(keys[:at] + [key])}: key", key, config)
        config = config[key]
    return config


def _check_key(config: ConfigDict, keys: list[str]) -> None:
    """Refuses a key that a configuration lacks; the message has its owner or the nearest key."""
    *before, last = keys
    group = _inside(config, before)
    if not isinstance(group, ConfigDict) or last in group:
        return
    if before and before[-1] in NAMED and "name" in group:
        check_owned(before[-1], group.name, [last])
    where = ".".join(["config", *before])
    one_of(f"config key {'.'.join(keys)}: key in {where}", last, group)
