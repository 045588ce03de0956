"""The notebooks run from top to bottom, with few training steps, and hold no outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
# What each prints, among other things.
EXPECTED = {
    "one_step_text": [
        "4 network calls: ['Once upon a time",
        "fmlm    1 network calls",
        "LanguageModel(flow map, 2 tokens, step 20)",
    ],
    "train_your_own": ["flow (Euler) 32 network calls", "flow map 4 network calls"],
    "distillation_explained": ["same phrase from the same noise: 0.", "flow map, 1 call  valid"],
}


def test_every_notebook_is_run():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FLM_NOTEBOOK_STEPS", "20")
    monkeypatch.setenv("XLA_FLAGS", "")
    pages = sorted((NOTEBOOKS.parent / "docs").glob("*.md"))
    (tmp_path / "own.txt").write_text("".join(page.read_text() for page in pages))
    monkeypatch.setenv("FLM_NOTEBOOK_TEXT", str(tmp_path / "own.txt"))
    text = (NOTEBOOKS / f"{name}.ipynb").read_text()
    assert str(Path.home()) not in text and os.sep + "tmp" not in text
    notebook = nbformat.reads(text, as_version=4)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert cells and all(not c.outputs and c.execution_count is None for c in cells)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    printed = "".join(o.get("text", "") for c in cells for o in c.outputs)
    for line in EXPECTED[name]:
        assert line in printed
