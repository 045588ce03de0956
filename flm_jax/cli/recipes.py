"""Recipes by name: `owt/flm` is configs/owt/flm.py of the repository, which comes with the library.

A wheel holds the folder `configs` in flm_jax/recipes; recipes import each other as `configs.NAME`.
"""

import ast
import importlib
import sys
import traceback
from pathlib import Path

from flm_jax.core.errors import UserError, unknown_name

_PACKAGE = Path(__file__).resolve().parents[1]
_CONFIGS = "configs"
_RAISED_ANEW = "Error whilst parsing config file"  # how such a message of ml_collections begins
_SHARED = "recipe"  # what the recipes of a folder have in common


def root() -> Path:
    """Folder that holds `configs`: the repository, or a folder of the installed library."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent


def recipes() -> list[str]:
    """Sorted names of all recipes."""
    found = (root() / _CONFIGS).glob("*/*.py")
    return sorted(f"{path.parent.name}/{path.stem}" for path in found if path.stem != _SHARED)


def located(given: str) -> str:
    """Returns the path of a file with get_config(), for the value of --config.

    Args:
      given: path of a file, or the name of a recipe, also as configs/NAME.py; ":" and an argument
        may follow either, and are kept.

    Raises:
      UserError: neither of them; the message has the nearest name.
    """
    path, colon, argument = given.partition(":")
    _let_configs_be_imported()
    if Path(path).is_file():
        return given
    name = path.removeprefix(f"{_CONFIGS}/").removesuffix(".py")
    known = recipes()
    if name in known:
        return f"{root() / _CONFIGS / name}.py{colon}{argument}"
    error = unknown_name("recipe", name, known)
    raise UserError(f"--config cannot be read: {path} is no file, and an {error}")


def unreadable(error: OSError) -> UserError:
    """Returns the error for a configuration file that cannot be read."""
    return UserError(f"--config cannot be read: {str(error).splitlines()[-1].strip()}")


def original(error: Exception) -> Exception:
    """Returns what a configuration raised: ml_collections raises some anew, with a traceback."""
    return error.__context__ or error if str(error).startswith(_RAISED_ANEW) else error


def broken(given: str, error: Exception) -> UserError:
    """Returns the error for a configuration file whose code fails, with its line and the cause.

    Args:
      given: path of the file, with its argument if there is one.
      error: exception raised by its code, or by reading it.
    """
    path, _, argument = given.partition(":")
    error = original(error)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    said = error.msg if isinstance(error, SyntaxError) else error
    where = f"{path}, line {line}" if line else path
    hint = f"; its argument is {argument!r}, and it says: {_said_of(path)}" if argument else ""
    return UserError(f"--config cannot be read: {where}: {type(error).__name__}: {said}{hint}")


def _said_of(path: str) -> str:
    """Docstring of a file's get_config, in one line."""
    for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "get_config":
            return " ".join((ast.get_docstring(node) or "nothing").split())
    return "nothing"


def _let_configs_be_imported() -> None:
    """Adds the recipes to the package `configs`, after those in the current folder."""
    folder = str(root())
    if not Path(folder, _CONFIGS).is_dir():  # of a copy of the package alone
        return
    if folder not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()
    places = getattr(importlib.import_module(_CONFIGS), "__path__", None)
    # Folders without __init__.py make one package together; one that has it would hide the others.
    if isinstance(places, list) and f"{folder}/{_CONFIGS}" not in places:
        places.append(f"{folder}/{_CONFIGS}")
