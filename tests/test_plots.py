"""Pictures of texts by step and of clocks hold what they are said to."""

import sys

import numpy as np
import pytest
from etils import epath

import flm_jax
from flm_jax.core import files
from flm_jax.core.files import write_figure
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.evaluation import plots
from flm_jax.inference import trajectories
from flm_jax.inference.language_model import Generated


@pytest.fixture
def drawn(monkeypatch):
    """Axes of the pictures that are written."""
    axes, write = [], write_figure

    def keep(figure, path):
        axes.extend(figure.axes)
        write(figure, path)

    monkeypatch.setattr(files, "_write", keep)
    return axes


def test_a_trajectory_shows_every_token_and_its_doubt(drawn, tmp_path):
    steps = [[("a\n", 0.25), ("$b$", 1.0)], [("cd", 0.5), ("\t", 0.0)]]
    trajectories.draw_trajectory(epath.Path(tmp_path / "t.png"), steps)
    (axis,) = drawn
    assert [text.get_text() for text in axis.texts] == ["a↵", r"\$b\$", "cd", "·"]
    assert [patch.get_alpha() for patch in axis.patches] == [0.75, 0.0, 0.5, 1.0]
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_long_trajectories_are_thinned_to_their_ends(drawn, tmp_path):
    steps = [[(f"{k:04d}", 1.0)] * 60 for k in range(100)]
    trajectories.draw_trajectory(epath.Path(tmp_path / "t.png"), steps)
    (axis,) = drawn
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert len(labels) == 16 and (labels[0], labels[-1]) == ("1", "100")
    assert len(axis.texts) == 16 * 24  # of 5 characters each with their space
    assert axis.get_xlabel().endswith("; 36 more tokens")


def test_a_sample_is_drawn_by_its_number(drawn, tmp_path, monkeypatch):
    tokenizer = ByteTokenizer()
    tokens = np.stack([[tokenizer.encode("no"), tokenizer.encode("so")]])
    confidence = np.full(tokens.shape, 0.5, np.float32)
    made = Generated(
        ["no", "so"], tokens[0], confidence[0], tokens, confidence, 1.0, 0.0, tokenizer
    )
    made.to_png(tmp_path / "t.png", sample=1)
    assert [text.get_text() for text in drawn[0].texts] == ["s", "o"]
    with pytest.raises(flm_jax.UserError, match="got sample=2 of 2 samples"):
        made.to_png(tmp_path / "t.png", sample=2)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(flm_jax.UserError, match="pip install 'flm-jax\\[plots\\]'"):
        made.to_png(tmp_path / "t.png")


def test_clocks_run_from_noise_to_text_and_later_in_a_narrow_embedding(drawn, tmp_path):
    plots.draw_clock(epath.Path(tmp_path / "c.png"), [8, 256], dim=16)
    small, large, narrow = (line.get_ydata() for line in drawn[0].lines)
    for tau in (small, large, narrow):
        assert tau[0] == 0 and tau[-1] == 1 and (np.diff(tau) >= 0).all()
    assert (narrow <= large).all() and (large <= small + 1e-6).all()
    assert narrow.mean() < large.mean() < small.mean()
