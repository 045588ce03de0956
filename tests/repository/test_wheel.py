"""A wheel of the library: what is in it, and its use away from the repository."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From this version on setuptools makes wheels by itself.
pytest.importorskip("setuptools", minversion="70.1", reason="needs setuptools (extra test)")

TINY = [
    *("--config.model.dim=16", "--config.model.depth=1", "--config.data.task_size=64"),
    *("--config.train.steps=2", "--config.train.batch=8", "--config.eval.every=0"),
]
OWN = """
from configs.phrases.recipe import recipe

def get_config():
    config = recipe("phrases2")
    config.optim.lr = -1.0
    return config
"""


def _run(words, folder):
    """What a program prints that ends well."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: a build leaves files in its folder."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("flm_jax", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name)
    for name in ("setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    compiled = folder / "source/configs/owt/__pycache__/flm.pyc"
    compiled.parent.mkdir(exist_ok=True)
    compiled.touch()
    flags = ["--no-deps", "--no-build-isolation", "--quiet", f"--wheel-dir={folder}"]
    _run([sys.executable, "-m", "pip", "wheel", *flags, "."], folder / "source")
    return next(folder.glob("*.whl"))


def _files(folder):
    wanted = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in wanted if path.suffix != ".pyc"}


def test_the_package_and_all_recipes_are_in_the_wheel_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    recipes = {f"flm_jax/recipes/{name}" for name in _files(ROOT / "configs")}
    assert "flm_jax/recipes/configs/owt/flm.py" in recipes
    found = {name for name in names if ".dist-info/" not in name}
    assert found == _files(ROOT / "flm_jax") | recipes
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The programs of an environment that has the wheel, and of this one its dependencies alone."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin/python"
    flags = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "pip", f"--python={python}", "install", *flags, wheel], folder)
    site = _run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder)
    # A folder named in a .pth file comes behind the wheel, and its own .pth files are not read.
    (Path(site.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def test_recipes_commands_and_models_work_away_from_the_repository(installed, tmp_path):
    flm, python = installed / "flm", installed / "python"
    where = _run([python, "-c", "import flm_jax; print(flm_jax.__file__)"], tmp_path)
    assert where.startswith(str(installed.parent))
    _run([flm, "train", "--config=phrases/flm:phrases2", "--workdir=run", *TINY], tmp_path)
    assert "samples" in _run([flm, "sample", "--workdir=run", "--num_samples=2"], tmp_path)
    tale = "import flm_jax; print(flm_jax.load('tales').sample(1, prompt='Once').texts[0])"
    assert _run([python, "-c", tale], tmp_path).startswith("Once")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("owt/flm", "data/owt is not prepared data"),
        ("configs/owt/flm.py", "data/owt is not prepared data"),
        ("quikstart/flm", "did you mean 'quickstart/flm'?"),
        ("configs/phrases/own.py", "config.optim.lr is -1.0"),
    ],
)
def test_recipes_are_found_by_name_and_import_each_other(installed, tmp_path, given, message):
    (tmp_path / "configs/phrases").mkdir(parents=True)
    (tmp_path / "configs/phrases/own.py").write_text(OWN)
    words = [installed / "flm", "train", f"--config={given}", "--workdir=run"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and message in done.stderr
    assert len([s for s in done.stderr.splitlines() if s.startswith("error: ")]) == 1
