"""The site, and the part of the suite by another Python: what is said where there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Answers as an interpreter of that version; its environments record what they are asked to run.
PYTHON = """#!/bin/bash
case "$1 $2" in
  "-c "*) echo {version} ;;
  "-m venv") mkdir -p "$3/bin"; cp "{folder}/installed" "$3/bin/python" ;;
esac
"""
INSTALLED = """#!/bin/bash
echo "$PYTHON: $FLM_JAX_OTHER_PYTHON $*" >> "{folder}/calls"
if [ "$2" = pip ]; then echo "ERROR: no network" >&2; exit {status}; fi
"""


def _program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def ci(tmp_path):
    """.ci/other_version in a copy of the repository that was tested by 3.12."""
    for name in (".ci", "launch"):
        shutil.copytree(ROOT / name, tmp_path / name)
    _program(tmp_path / ".venv-test/bin/python", PYTHON.format(version="3.12", folder=tmp_path))

    def run(*versions, status=0):
        for at, version in enumerate(versions):
            home = f"home/.pyenv/versions/{version}.1/bin/python"
            place = f"bin/python{version}" if at % 2 else home
            _program(tmp_path / place, PYTHON.format(version=version, folder=tmp_path))
        _program(tmp_path / "installed", INSTALLED.format(folder=tmp_path, status=status))
        for program in ("bash", "dirname", "mkdir", "cp", "tail", "env"):
            (tmp_path / "bin").mkdir(exist_ok=True)
            (tmp_path / "bin" / program).symlink_to(shutil.which(program))
        env = {"PATH": f"{tmp_path}/bin", "HOME": f"{tmp_path}/home"}
        line = [shutil.which("bash"), tmp_path / ".ci/other_version"]
        done = subprocess.run(line, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        calls = tmp_path / "calls"
        return done.stdout, calls.read_text() if calls.exists() else ""

    return run


def test_without_a_second_python_one_line_says_so(ci):
    said, calls = ci("3.12", "3.10")
    assert said.startswith("no second Python of 3.11 to 3.13 is at hand") and not calls
    assert said.count("\n") == 1


def test_without_a_network_one_line_says_so(ci):
    said, calls = ci("3.13", status=1)
    assert "3.13.1/bin/python: its packages could not be installed (ERROR: no network)" in said
    assert said.count("\n") == 1 and "-m pytest" not in calls


@pytest.mark.parametrize("versions", [("3.11", "3.13"), ("3.13", "3.11"), ("3.12", "3.13")])
def test_the_newest_other_one_runs_the_part(ci, tmp_path, versions):
    _, calls = ci(*versions)
    (line,) = [line for line in calls.splitlines() if "-m pytest" in line]
    assert "python3.13" in line or "versions/3.13.1" in line
    assert f": {tmp_path}/.venv-test/bin/python -m pytest -q" in line
    parts = [word for word in line.split() if word.startswith("tests/")]
    assert "tests/checkpoints/test_versions.py" in parts
    assert all((ROOT / part).exists() for part in parts)


@pytest.mark.parametrize("status", [0, 1])
def test_the_site_is_built_where_its_packages_can_be_installed(tmp_path, status):
    for name in (".ci", "launch"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "setup.py", tmp_path)
    _program(tmp_path / "installed", INSTALLED.format(folder=tmp_path, status=status))
    _program(tmp_path / "python", PYTHON.format(version="3.12", folder=tmp_path))
    env = os.environ | {"PYTHON": str(tmp_path / "python"), "FLM_JAX_OTHER_PYTHON": ""}
    line = ["bash", tmp_path / ".ci/docs"]
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stdout + done.stderr
    calls = (tmp_path / "calls").read_text()
    assert "pip install --quiet --disable-pip-version-check mkdocs-material==9.* latex" in calls
    assert ("-m mkdocs build --strict\n" in calls) == (status == 0)
    said = "could not be installed (ERROR: no network): it was not built" if status else "was built"
    assert said in done.stdout


def test_shellcheck():
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("shellcheck is not installed (extra dev)")
    scripts = [ROOT / ".ci" / name for name in os.listdir(ROOT / ".ci")]
    done = subprocess.run([program, "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
