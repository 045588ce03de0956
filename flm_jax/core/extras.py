"""Packages that only some uses need: installed by an extra of this one."""

import importlib
from types import ModuleType

from flm_jax.core.errors import UserError


def import_extra(package: str, extra: str, user: str) -> ModuleType:
    """A package of an extra.

    Args:
      package: name to import.
      extra: of flm-jax that installs it.
      user: what needs it, for the message: "source 'hf'".

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{user} needs the package `{package.partition('.')[0]}`, which is not installed: "
            f"pip install 'flm-jax[{extra}]'"
        ) from error
