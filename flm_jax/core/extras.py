"""Imports packages that only some uses need, installed by extras of flm-jax."""

import importlib
from types import ModuleType

from flm_jax.core.errors import UserError


def import_extra(package: str, extra: str, user: str) -> ModuleType:
    """Imports a package of an extra.

    Args:
      package: name to import.
      extra: extra of flm-jax that installs the package.
      user: feature that needs the package, for the message: "source 'hf'".

    Raises:
      UserError: the package is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{user} needs the package `{package.partition('.')[0]}`, which is not installed: "
            f"pip install 'flm-jax[{extra}]'"
        ) from error
