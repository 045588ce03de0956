"""The generated pages equal what their programs print, and README stays short."""

import os
import subprocess
import sys
from pathlib import Path

from flm_jax.cli.main import commands
from flm_jax.inference.reference import page

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference"


def test_the_page_of_commands_is_up_to_date():
    """In a process of its own: two commands have flags of one name."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    made = [sys.executable, "-m", "flm_jax.cli.reference"]
    done = subprocess.run(made, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    written = (REFERENCE / "commands.md").read_text()
    assert written == done.stdout, "python -m flm_jax.cli.reference > docs/reference/commands.md"
    assert all(f"\n## {name}\n" in written for name in commands())
    assert "may be repeated. |" in written  # without what absl adds


def test_the_page_of_python_is_up_to_date():
    written = (REFERENCE / "python.md").read_text()
    assert written == page(), "python -m flm_jax.inference.reference > docs/reference/python.md"
    assert "    seed: int = 0,\n" in written and "- `texts`: " in written


def test_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120 and len(text.split()) <= 900
