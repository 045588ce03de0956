"""The console script: it lists the commands, and runs one as `python -m` does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flm_jax.cli.main import commands, overview

ROOT = Path(__file__).parents[2]
FLM = "import sys; from flm_jax.cli.main import main; sys.exit(main())"


def flm(folder, *words):
    """`flm WORDS` as the installed script runs it: without the working directory on the path."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    line = [sys.executable, "-c", FLM, *words]
    return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def test_every_command_is_listed_with_its_first_line():
    listed = overview()
    assert "train" in commands() and "run_benchmark" in commands() and "__main__" not in commands()
    for name, says in commands().items():
        assert says.endswith(".") and f"{name} " in listed and says in listed


def test_the_list_is_what_it_prints(tmp_path):
    done = flm(tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == overview().strip()


def test_an_unknown_command_is_refused_with_the_nearest(tmp_path):
    done = flm(tmp_path, "trian")
    assert done.returncode == 2 and done.stderr.startswith("error: unknown command 'trian'; did ")
    assert len(done.stderr.strip().splitlines()) == 1 and "'train'" in done.stderr


def test_a_recipe_may_import_configs_from_where_one_stands(tmp_path):
    """The recipe imports `configs` of the working directory, and its command runs with it."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/base.py").write_text("from flm_jax.config import base_config\n")
    recipe = "from configs.base import base_config\ndef get_config():\n    return base_config()\n"
    (tmp_path / "configs/own.py").write_text(recipe)
    words = ("train", "--config=configs/own.py", "--config.optim.lr=-1", "--workdir=w")
    done = flm(tmp_path, *words, "--config.data.task=phrases2", "--config.model.length=2")
    assert done.returncode == 2, done.stderr
    assert "config.optim.lr is -1.0" in done.stderr and "flm train" not in done.stdout


@pytest.mark.parametrize("name", ["train", "compile"])
def test_a_command_tells_its_flags(tmp_path, name):
    done = flm(tmp_path, name, "--help")
    assert "--config" in done.stdout and "--workdir" in done.stdout or name == "compile"
