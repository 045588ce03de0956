"""Every module is imported by the Python and JAX that are here, without names they deprecate."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Commands define flags of the same names: those of one are removed before the next.
IMPORTS = """
import importlib, pkgutil, sys, warnings
warnings.filterwarnings("error", category=DeprecationWarning, module=r"flm_jax\\b")
from absl import flags
import flm_jax
names = [m.name for m in pkgutil.walk_packages(flm_jax.__path__, "flm_jax.")]
shared = [name for name in names if name.count(".") > 1]
for name in shared + [name for name in names if name.count(".") == 1 and "__main__" not in name]:
    before = set(flags.FLAGS)
    importlib.import_module(name)
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
print(len(names))
"""


def test_all_modules():
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = list((ROOT / "flm_jax").rglob("*.py"))
    # Of packages the folder is the module; the outermost is not among its own.
    assert int(done.stdout) == len(modules) - 1
