"""The notebooks run from top to bottom, with few training steps, and hold no outputs."""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from helpers.compiling import FAST

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
# What each prints, among other things, and the workdirs that it leaves.
EXPECTED = {
    "sampling_demo": (
        [
            "LanguageModel(flow map, 64 tokens",
            "calls  seconds  confidence  real words",
            "said the fox",
        ],
        [],
    ),
    "train_your_own": (
        ["flow (Euler) 32 network calls", "flow map 4 network calls"],
        ["flm", "fmlm"],
    ),
    "distillation_explained": (
        ["same phrase from the same noise: 0.", "flow map, 1 call  valid"],
        ["flm", "fmlm"],
    ),
    "masked_flow": (["8 network calls: ", "promotion ", "both "], ["base", "sft"]),
}
# Those that train take most of a minute even at twenty steps: they compile much.
RUNS = [
    pytest.param(name, marks=[pytest.mark.slow] * bool(workdirs))
    for name, (_, workdirs) in EXPECTED.items()
]


def test_every_notebook_is_run_and_explains_each_of_its_cells():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(EXPECTED)
    for name in EXPECTED:
        cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
        for before, cell in zip(cells, cells[1:]):
            explained = before.cell_type == "markdown" and before.source.endswith((".", ")"))
            assert cell.cell_type == "markdown" or explained, (name, cell.source)


@pytest.mark.parametrize("name", RUNS)
def test_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FLM_NOTEBOOK_STEPS", "20")
    monkeypatch.setenv("XLA_FLAGS", FAST)
    pages = sorted((NOTEBOOKS.parent / "docs").glob("*.md"))
    (tmp_path / "own.txt").write_text("".join(page.read_text() for page in pages))
    monkeypatch.setenv("FLM_NOTEBOOK_TEXT", str(tmp_path / "own.txt"))
    text = (NOTEBOOKS / f"{name}.ipynb").read_text()
    assert str(Path.home()) not in text and os.sep + "tmp" not in text
    notebook = nbformat.reads(text, as_version=4)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert cells and all(not c.outputs and c.execution_count is None for c in cells)
    printed, (lines, workdirs) = _printed(notebook, tmp_path), EXPECTED[name]
    for line in lines:
        assert line in printed
    found = sorted(path.parent.name for path in tmp_path.rglob("runs/**/checkpoints"))
    assert found == workdirs
    if name == "train_your_own":  # after a restart
        again = _printed(nbformat.reads(text, as_version=4), tmp_path)
        assert again.count("from step") == 2 and "step 20/20" not in again


def _printed(notebook, folder):
    """What a notebook prints when it is run in a folder."""
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


@pytest.mark.parametrize("name", EXPECTED)
def test_notebooks_install_themselves_and_go_on(name, tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    install = next(c.source for c in notebook.cells if "find_spec" in c.source)
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda words, check: ran.append(words[1:]))
    exec(install, {})
    assert not ran
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(NOTEBOOKS)
    exec(install, {})
    monkeypatch.setenv("FLM_JAX_SOURCE", "git+https://host/flm_jax")
    exec(install, {})
    pip = ["-m", "pip", "install", "-q"]
    assert ran == [[*pip, ".."], [*pip, "git+https://host/flm_jax"]]
    monkeypatch.delenv("FLM_JAX_SOURCE")
    monkeypatch.chdir(tmp_path)
    colab = types.SimpleNamespace(files=types.SimpleNamespace(upload=lambda: {"a.whl": b""}))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    exec(install, {})
    assert ran[2:] == [[*pip, "a.whl"]]
