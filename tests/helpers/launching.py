"""The scripts of launch/: one run as a command, one loaded as a module."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

LAUNCH = Path(__file__).parents[2] / "launch"


def launch(script: str, *flags: str, **more: str) -> subprocess.CompletedProcess:
    """Runs a script of launch/ with variables added to the environment.

    PYTHON, which names the interpreter that the tests were started for, is left out of it.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    return subprocess.run(
        ["bash", str(LAUNCH / script), *flags],
        capture_output=True,
        text=True,
        timeout=60,
        env=kept | more,
    )


def load(name: str) -> ModuleType:
    """Loads launch/NAME.py, which may import its neighbours."""
    sys.path.insert(0, str(LAUNCH))
    spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(LAUNCH))
    return module
