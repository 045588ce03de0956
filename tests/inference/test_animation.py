"""Moving pictures of texts."""

import sys

import numpy as np
import pytest

import flm_jax
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.inference import animation
from flm_jax.inference.language_model import Generated


@pytest.fixture
def made():
    """Two texts in three steps, of which the model grows sure."""
    tokenizer = ByteTokenizer()
    words = ["now", "not"]
    tokens = np.array([[tokenizer.encode(word) for word in words]] * 3)
    confidence = np.broadcast_to(np.array([0.0, 0.5, 1.0], np.float32)[:, None, None], tokens.shape)
    return Generated(words, tokens[-1], confidence[-1], tokens, confidence, 3.0, 0.0, tokenizer)


def test_a_frame_of_noise_then_one_a_step_each_with_its_doubt(made, tmp_path):
    image = pytest.importorskip("PIL.Image")
    made.to_gif(tmp_path / "new" / "t.gif")
    with image.open(tmp_path / "new" / "t.gif") as found:
        assert found.n_frames == 4 and found.info["loop"] == 0
        colours, times = [], []
        for k in range(4):
            found.seek(k)
            times.append(found.info["duration"])
            colours.append({colour for _, colour in found.convert("RGB").getcolors(1 << 20)})
    doubt = np.array(animation._DOUBT)
    near = [
        min(abs(np.array(c) - doubt).max() for c in frame) < 12  # palettes have few colours
        for frame in colours
    ]
    assert near == [False, True, False, False]
    assert times[-1] > 2 * times[1]


def test_long_texts_go_on_in_the_next_line():
    pairs = [(" word", 1.0)] * 40
    places = animation._placed(pairs)
    assert {line for _, line, _, _ in places} == {0, 1, 2}
    assert all(column + len(letters) <= 76 for column, _, letters, _ in places)
    assert places[15][:3] == (0, 1, "word")


def test_without_matplotlib_one_line_says_so(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(flm_jax.UserError, match="pip install 'flm-jax\\[plots\\]'"):
        made.to_gif(tmp_path / "t.gif")
