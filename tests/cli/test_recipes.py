"""Recipes named without a path: found, refused, and imported by each other, wherever one stands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flm_jax.cli import recipes as cli_recipes
from flm_jax.cli.recipes import located, recipes
from flm_jax.core.errors import UserError

ROOT = Path(__file__).parents[2]
FLM = "import sys; from flm_jax.cli.main import main; sys.exit(main())"
OWN = "from configs.owt.recipe import recipe\nget_config = recipe\n"


@pytest.fixture
def train(tmp_path):
    """`flm train` away from the repository, with an install that has the package alone on the path.

    A learning rate that is refused stands for a recipe that was read.
    """
    (tmp_path / "site").mkdir()
    (tmp_path / "site/flm_jax").symlink_to(ROOT / "flm_jax")
    (tmp_path / "empty").mkdir()

    def run(config, *words):
        env = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
        line = [sys.executable, "-c", FLM, "train", f"--config={config}", "--config.optim.lr=-1"]
        where = {"cwd": tmp_path / "empty", "env": env}
        done = subprocess.run(
            [*line, "--workdir=w", *words], **where, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
        return done.stderr

    return run


def test_every_file_with_get_config_is_a_recipe():
    assert "owt/flm" in recipes() and "comparisons/tasks" in recipes()
    files = [
        path for path in (ROOT / "configs").rglob("*.py") if "def get_config" in path.read_text()
    ]
    assert recipes() == sorted(f"{path.parent.name}/{path.stem}" for path in files)


@pytest.mark.parametrize("given", ["owt/flm", "configs/owt/flm.py", "owt/flm.py"])
@pytest.mark.parametrize("argument", ["", ":data/own", ":gs://bucket/data"])
def test_names_are_found_and_arguments_stay(tmp_path, monkeypatch, given, argument):
    monkeypatch.chdir(tmp_path)
    assert located(given + argument) == f"{ROOT}/configs/owt/flm.py{argument}"


def test_a_local_file_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owt/flm").mkdir(parents=True)  # folders are no files
    assert located("owt/flm") == f"{ROOT}/configs/owt/flm.py"
    (tmp_path / "configs/owt").mkdir(parents=True)
    (tmp_path / "configs/owt/flm.py").write_text(OWN)
    assert located("configs/owt/flm.py:a") == "configs/owt/flm.py:a"
    assert located(f"{tmp_path}/configs/owt/flm.py") == f"{tmp_path}/configs/owt/flm.py"


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("owt/flm1b", "owt/flm_1b"), ("configs/quikstart/flm.py:x", "quickstart/flm")],
)
def test_an_unknown_one_is_refused_with_the_nearest(given, nearest):
    with pytest.raises(UserError, match=f"is no file, and an unknown .*did you mean '{nearest}'"):
        located(given)


def test_an_install_has_its_own_folder(tmp_path, monkeypatch):
    assert cli_recipes.root() == ROOT
    (tmp_path / "flm_jax/recipes").mkdir(parents=True)
    monkeypatch.setattr(cli_recipes, "_PACKAGE", tmp_path / "flm_jax")
    assert cli_recipes.root() == tmp_path / "flm_jax/recipes"


def test_a_copy_of_the_package_alone_takes_files(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_recipes, "_PACKAGE", tmp_path / "flm_jax")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "configs", raising=False)
    (tmp_path / "own.py").write_text(OWN)
    assert located(f"{tmp_path}/own.py") == f"{tmp_path}/own.py"
    with pytest.raises(UserError, match="unknown recipe 'owt/flm'"):
        located("owt/flm")


def test_a_recipe_is_named_from_any_folder(train):
    assert "config.optim.lr is -1.0" in train("quickstart/flm")
    assert "did you mean 'quickstart/flm'" in train("quickstart/flmm")


@pytest.mark.parametrize("package", [False, True])
def test_recipes_import_configs_beside_those_of_where_one_stands(train, tmp_path, package):
    own = tmp_path / "empty/configs/mine"
    own.mkdir(parents=True)
    if package:
        (own.parent / "__init__.py").touch()
    (own / "base.py").write_text(OWN)
    (own / "flm.py").write_text("from configs.mine.base import get_config\n")
    assert "config.optim.lr is -1.0" in train("configs/mine/flm.py")
    assert "config.optim.lr is -1.0" in train("quickstart/flm")
