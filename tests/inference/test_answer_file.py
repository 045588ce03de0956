"""Answers to a file of prompts are kept while they are made."""

import os

import pytest

from flm_jax.core.errors import UserError
from flm_jax.core.files import read_json_lines
from flm_jax.inference import answer_file
from flm_jax.inference.answer_file import described, open_answers
from flm_jax.inference.answers import Answering
from flm_jax.inference.prompts import Prompt
from helpers.prompts import byte_model

PROMPTS = [Prompt("a"), Prompt("", "b{3}c"), *(Prompt(f"d{n}") for n in range(5))]
RUNS = [Answering(steps, 2, seed=5, answer_length=4) for steps in (2, 3)]


@pytest.fixture(scope="module")
def model():
    return byte_model()


def answered(model, path, settings=None):
    with open_answers(str(path), settings or {"steps": [2, 3], "how": RUNS[0].sampler}) as kept:
        before = [kept.done(run) for run in (0, 1)]
        return before, [kept.answer(model, PROMPTS, how, run) for run, how in enumerate(RUNS)]


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(model, tmp_path, monkeypatch):
    out = tmp_path / "new" / "out.jsonl"
    before, whole = answered(model, out)
    assert before == [0, 0] and not out.parent.exists()
    assert [[r["steps"] for r in found] for found in whole] == [[2] * 7, [3] * 7]
    assert [r["prompt"] for r in whole[1]] == [p.text for p in PROMPTS]
    assert whole[0][1]["infill"] == "b{3}c" and len({r["text"] for r in whole[0]}) == 7

    asked, append = [], answer_file.append_json_line

    def stopped(part, lines):
        append(part, lines)
        if len(read_json_lines(part)) > 11:  # of its 14 answers 10 and one more batch
            raise KeyboardInterrupt

    monkeypatch.setattr(answer_file, "append_json_line", stopped)
    with pytest.raises(KeyboardInterrupt):
        answered(model, out)
    part = tmp_path / "new" / "out.jsonl.part"
    lines = part.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 11
    part.write_text("".join(lines[:-1]) + lines[-1][:30])  # killed while it wrote
    with pytest.raises(KeyboardInterrupt):
        answered(model, out)
    assert part.read_text().splitlines(keepends=True) == lines
    more = lambda part, lines: (asked.extend(lines), append(part, lines))
    monkeypatch.setattr(answer_file, "append_json_line", more)
    assert answered(model, out) == ([7, 4], whole)
    assert [one["place"] for one in asked] == [4, 5, 6] and {one["run"] for one in asked} == {1}
    assert not part.exists()


def test_answers_of_other_settings_are_not_mixed(model, tmp_path):
    out = tmp_path / "out.jsonl"
    settings = described(model, "W", RUNS[0])
    with pytest.raises(KeyboardInterrupt), open_answers(str(out), settings):
        with pytest.raises(UserError, match="in use by this process"):
            answered(model, out)
        raise KeyboardInterrupt
    with pytest.raises(UserError, match=r"out.jsonl.part holds .*\(seed: 5 there, 6 now\); give"):
        answered(model, out, settings | {"seed": 6})
    for torn in (None, '{"settings"'):  # killed while it began
        if torn:
            out.with_name("out.jsonl.part").write_text(torn)
        with open_answers(str(out), settings) as kept:
            assert kept.done(0) == 0
        assert not list(tmp_path.iterdir())


def test_pipes_and_stores_keep_nothing(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "gs://bucket/x"):
        with open_answers(str(path), {}) as kept:
            assert kept.done(0) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
