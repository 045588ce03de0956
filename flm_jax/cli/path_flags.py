"""Flags whose values are checked when they are parsed: paths, output files and seeds."""

from importlib.util import find_spec

from absl import flags

from flm_jax.core.errors import LAST_SEED, require
from flm_jax.core.paths import check_file, expanded

# `--help` shows the flags of the command itself: those defined here count as its own.
flags.disclaim_key_flags()


class _Path(flags.ArgumentParser):
    """Parser of a path, or of a name for which a path may be given."""

    def parse(self, argument: str) -> str:
        return expanded(argument)

    def flag_type(self) -> str:
        return "string"


class _Output(_Path):
    """Parser of the path of a file to write."""

    def __init__(self, name: str):
        self._name = name

    def parse(self, argument: str) -> str:
        path = expanded(argument)
        check_file(path, f"--{self._name}")
        return path


def DEFINE_path(name: str, default: str, help_text: str) -> flags.FlagHolder[str]:
    """Defines a flag for a path to read, or for a folder that its command checks itself."""
    return flags.DEFINE(_Path(), name, default, help_text)


def DEFINE_output(name: str, default: str, help_text: str) -> flags.FlagHolder[str]:
    """Defines a flag for a file to write; a path that cannot be written is a bad flag."""
    return flags.DEFINE(_Output(name), name, default, help_text)


def DEFINE_seed(name: str, default: int, help_text: str) -> flags.FlagHolder[int]:
    """Defines a flag for the seed of random draws."""
    return flags.DEFINE_integer(name, default, help_text, lower_bound=0, upper_bound=LAST_SEED)


def check_plots(output: flags.FlagHolder[str]) -> None:
    """Refuses a flag for a picture if matplotlib is missing."""
    require(
        not output.value or find_spec("matplotlib") is not None,
        f"got --{output.name}={output.value}, and there is no matplotlib: pip install "
        "'flm-jax[plots]'.",
    )
