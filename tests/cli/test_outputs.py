"""What commands print and write: in any locale, into folders that are made, or refused at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flm_jax.core.errors import UserError
from flm_jax.core.files import write_output
from flm_jax.core.paths import check_file, check_folder, expanded
from helpers.runs import run, tiny_config

ROOT = Path(__file__).parents[2]
TEXT = "漢字 ну что 🙂 λόγος "
SMALL = """
    --config.model.length=8 --config.model.dim=16 --config.model.depth=1 --config.model.heads=2
    --config.model.cond_dim=16 --config.train.batch=8 --config.train.steps=1
    --config.eval.sample_steps=2 --config.eval.batches=1
"""


def command(module, *flags, folder=ROOT, **env):
    line = [sys.executable, "-m", f"flm_jax.{module}", *flags]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.run(line, cwd=folder, env=env, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "run"
    config = tiny_config()
    config.train.steps = 1
    assert run(config, folder) == 0
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text("\n".join([TEXT * 4] * 40), encoding="utf8")
    flags = "--source=text --split_documents=line --tokenizer=characters --valid_fraction=0.2"
    done = command(
        "prepare_data", f"--path={folder / 'text.txt'}", f"--out={folder / 'out'}", *flags.split()
    )
    assert done.returncode == 0, done.stderr
    return folder / "out"


LOCALES = {
    "latin": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}


@pytest.mark.parametrize("locale", LOCALES)
def test_characters_that_cannot_be_printed_are_replaced(corpus, tmp_path, locale):
    env = {"PYTHONIOENCODING": ""} | LOCALES[locale]
    flags = f"--config=configs/quickstart/flm.py --workdir={tmp_path / 'run'} {SMALL}"
    done = command("train", *flags.split(), f"--config.data.path={corpus}", **env)
    assert done.returncode == 0, done.stderr
    assert b"eval at step 1" in done.stdout and b"?" in done.stdout
    texts = (tmp_path / "run/samples/1.txt").read_text(encoding="utf8")
    assert set(texts) & set(TEXT)
    page = f"--html={tmp_path / 'page.html'}"
    done = command("sample", f"--workdir={tmp_path / 'run'}", "--steps=2", "--live", page, **env)
    assert done.returncode == 0, done.stderr
    assert set((tmp_path / "page.html").read_text(encoding="utf8")) & set(TEXT.replace(" ", ""))


def test_folders_of_results_are_made(model, tmp_path):
    flags = ["--steps=2", "--num_samples=2", f"--workdir={model}"]
    paths = {name: tmp_path / "new" / name / "file" for name in ("out", "html", "trajectory")}
    done = command("sample", *flags, *(f"--{name}={path}" for name, path in paths.items()))
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_size for path in paths.values())
    sweep = ["--option=temperature", "--values=0"]
    paths = {name: tmp_path / "new" / name / "file" for name in ("json", "plot")}
    done = command("sweep", *flags, *sweep, *(f"--{name}={path}" for name, path in paths.items()))
    assert done.returncode == 0, done.stderr
    assert json.loads(paths["json"].read_text()) and paths["plot"].stat().st_size


FILES = {
    "sample": ("out", "html", "trajectory"),
    "evaluate": ("json",),
    "sweep": ("json", "plot"),
    "frontier": ("out",),
    "bench": ("json",),
    "compile": ("json", "hlo"),
}
FOLDERS = {
    "train": ("workdir", "--config=configs/phrases/flm.py"),
    "train_policy": ("workdir", "--config=configs/x_prediction/sums_policy.py"),
    "train_reward": ("out", "--workdir=MODEL --match=new"),
    "generate_data": ("out", "--workdir=MODEL"),
    "prepare_data": ("out", "--source=pydoc"),
    "run_benchmark": ("out", "--workdir=MODEL --task=gsm8k --data=nothing"),
    "evaluate": ("workdir", "--config=configs/comparisons/tasks.py:phrases4"),
    "convert": ("export", "--workdir=MODEL"),
}


def refused(module, flags, path):
    done = command(module, *flags, folder=ROOT)
    lines = done.stderr.decode().strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1, done.stderr.decode()
    assert lines[0].startswith("error: ") and path in lines[0] and "expected a" in lines[0], lines
    return lines[0]


@pytest.mark.parametrize(("module", "flag"), [(m, f) for m, fs in FILES.items() for f in fs])
def test_files_that_cannot_be_written_are_refused_at_the_start(module, flag, tmp_path):
    (tmp_path / "file").write_text("")
    path = f"{tmp_path / 'file'}/below"
    assert f"--{flag}={path}" in refused(module, [f"--{flag}={path}"], path)


@pytest.mark.parametrize("module", FOLDERS)
def test_folders_that_cannot_be_made_are_refused_at_the_start(module, model, tmp_path):
    (tmp_path / "file").write_text("")
    flag, more = FOLDERS[module]
    path = f"{tmp_path / 'file'}/below"
    refused(module, [*more.replace("MODEL", str(model)).split(), f"--{flag}={path}"], path)


@pytest.mark.parametrize("path", ["a/b/file", "file", "/dev/stdout", "gs://bucket/x", ""])
def test_files_that_can_be_written_pass_and_nothing_is_made(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_file(path, "--out")
    check_folder("" if path == "/dev/stdout" else path, "--out")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_told_with_its_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="got --out=.*which is no file; give another"):
        check_file(str(tmp_path), "--out")
    with pytest.raises(UserError, match="got --out=.*which is no folder; give another"):
        check_folder(str(tmp_path / "file"), "--out")
    for check in (check_file, check_folder):
        for bad in (tmp_path / "file/x/y", Path("/proc/none/x"), tmp_path / ("n" * 300)):
            with pytest.raises(UserError, match="cannot be written .*expected a f.*another path"):
                check(str(bad), "--out")
    with pytest.raises(UserError, match="could not be written"):
        write_output(tmp_path / "file/x", "text")


def test_the_home_folder_is_expanded_in_every_path(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("hf:~/a") == f"hf:{tmp_path}/a" and expanded("~/a") == f"{tmp_path}/a"
    assert expanded("a~/b") == "a~/b" and expanded("") == ""
    (tmp_path / "run").symlink_to(model)
    place = tmp_path / "here"
    place.mkdir()
    flags = ["--workdir=~/run", "--steps=2", "--num_samples=1", "--out=~/new/x.jsonl"]
    done = command("sample", *flags, folder=place)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new/x.jsonl").exists() and not list(place.iterdir())
    done = command("evaluate", "--model=~/run:2", "--num_samples=2", "--json", "~/new/y.json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new/y.json").exists()
