"""Texts resolving step by step: pages, terminals, pictures."""

import html
import json
import re
import sys

import numpy as np
import pytest
from etils import epath

import flm_jax
from flm_jax.core.files import write_figure
from flm_jax.data.tokenizers.builtin import ByteTokenizer, WordTokenizer
from flm_jax.data.tokenizers.registry import make_tokenizer
from flm_jax.inference import trajectories
from flm_jax.inference.language_model import Generated
from flm_jax.inference.trajectories import framed, in_terminal, pieces, to_html


@pytest.fixture
def drawn(monkeypatch):
    """Axes of the pictures that are written."""
    axes, write = [], write_figure

    def keep(figure, path):
        axes.extend(figure.axes)
        write(figure, path)

    monkeypatch.setattr(trajectories, "write_figure", keep)
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


@pytest.mark.parametrize("kind", ["words", "bytes", "sentencepiece"])
def test_pieces_join_to_the_text(kind):
    text = "naïve words, of a longer text"
    if kind == "words":
        tokenizer, text = WordTokenizer("new york san diego".split()), "new york san diego new"
    elif kind == "bytes":
        tokenizer = ByteTokenizer()
    else:
        tokenizer = make_tokenizer("sentencepiece", lambda: [text] * 99, vocab_size=60)
    ids = tokenizer.encode(text)
    assert "".join(pieces(tokenizer, ids)) == text
    if tokenizer.eos_id is not None:
        framed = [tokenizer.bos_id, *ids, tokenizer.eos_id]
        assert "".join(pieces(tokenizer, framed)) == f"<bos>{text}<eos>"


def test_a_page_holds_every_call_and_no_markup_of_texts():
    tokenizer = ByteTokenizer()
    tokens = np.stack([tokenizer.encode(text) for text in ("</script>", "<b>&amp;!")])[:, None]
    page = to_html(tokenizer, tokens, np.full(tokens.shape, 0.5), title="a < b")
    assert page.count("</script>") == 1 and "<b>" not in page and "a &lt; b" in page
    data = page.split("const frames = ")[1].split(";\n")[0]
    steps = json.loads(data)[0]
    assert ["".join(p for p, _ in step) for step in steps] == ["</script>", "<b>&amp;!"]
    (inner,) = re.findall('srcdoc="([^"]*)"', framed(page))
    assert html.unescape(inner) == page
    with pytest.raises(flm_jax.UserError, match="expected \\[steps, samples, length\\]"):
        to_html(tokenizer, tokens[0], tokens[0])


def test_a_terminal_shows_each_call_in_place():
    tokenizer, written = WordTokenizer("new york san diego".split()), []
    tokens = np.array([[[0, 3]], [[0, 1]]])
    confidence = np.array([[[0.9, 0.1]], [[1.0, 0.6]]])
    in_terminal(tokenizer, tokens, confidence, seconds=0.0, write=written.append)
    first, second, _ = written
    assert "step 1/2" in first and "new" in first and "diego" not in first
    assert second.startswith("\x1b[2F\x1b[J") and "\x1b[2m york\x1b[0m" in second
