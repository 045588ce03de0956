"""Frontiers: rows of sweeps become lines, one for each model and number of steps."""

import json

import pytest
from etils import epath

from flm_jax.core.errors import UserError
from flm_jax.evaluation.frontiers import draw_frontier, far, lines, read_rows


def row(model, entropy, perplexity, **more):
    return {"model": model, "entropy_nats": entropy, "judge_perplexity": perplexity} | more


DATA = row("data", 3.0, 20.0)
SWEPT = [
    row("mdlm", 3.2, 90.0, calls=4, steps=4, swept=1.0),
    row("mdlm", 2.9, 50.0, calls=4, steps=4, swept=0.8),
]
MORE = row("mdlm", 3.1, 40.0, calls=7.5, steps=8, swept=1.0)
WAY = row("map t=0.8", 3.0, 70.0, calls=1, steps=1, of="map", swept=0.8)
OWN = row("map", 3.1, 80.0, calls=1, steps=1)


def test_rows_become_lines_and_a_picture(tmp_path):
    for name, rows in (("a", [*SWEPT, MORE, DATA]), ("b", [WAY, OWN, DATA])):
        (tmp_path / name).write_text(json.dumps(rows))
    rows = read_rows([str(tmp_path / name) for name in "ab"], "judge_perplexity")
    assert [r["model"] for r in rows].count("data") == 1 and rows[-1] == DATA
    found = lines(rows)
    assert {key: len(some) for key, some in found.items()} == {
        ("mdlm", 4): 2,
        ("mdlm", 8): 1,
        ("map", 1): 2,
    }
    assert [r["entropy_nats"] for r in found["mdlm", 4]] == [2.9, 3.2]
    draw_frontier(epath.Path(tmp_path / "f.png"), rows, "judge_perplexity")
    assert (tmp_path / "f.png").stat().st_size > 5000


def test_texts_far_from_the_data_leave_the_others_their_room():
    collapsed = row("dcd greedy", 0.2, 80.0, calls=1, steps=1)
    assert far([*SWEPT, collapsed, DATA]) == [collapsed]
    assert far([*SWEPT, collapsed]) == []


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is no JSON"),
        ("{}", "holds no list of rows"),
        ("[]", "no rows of models"),
        (json.dumps([{"model": "a", "entropy_nats": 1.0}]), "lacks judge_perplexity.*--judge"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    (tmp_path / "a").write_text(content)
    with pytest.raises(UserError, match=message):
        read_rows([str(tmp_path / "a")], "judge_perplexity")
    with pytest.raises(UserError, match="no file"):
        read_rows([str(tmp_path / "none")], "judge_perplexity")
