"""Synthetic tasks: reproducible samples, problems and exact reports; the phrases' laws."""

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.pipeline import make_iterator
from flm_jax.data.tasks.grammar import GrammarTask
from flm_jax.data.tasks.phrases import LawTask
from flm_jax.data.tasks.registry import TASKS, make_task

PHRASES = [name for name in TASKS if name.startswith("phrases")]
WITH_PROBLEMS = [name for name in TASKS if name not in PHRASES]


@pytest.mark.parametrize("name", TASKS)
def test_samples_are_right_and_depend_on_size_and_seed_alone(name):
    task = make_task(name)
    tokens = task.sample(20_000, seed=0)
    assert tokens.shape == (20_000, task.length)
    assert tokens.dtype == np.int32
    assert 0 <= tokens.min() <= tokens.max() < task.tokenizer.vocab_size
    np.testing.assert_array_equal(tokens, make_task(name).sample(20_000, seed=0))
    assert (tokens != task.sample(20_000, seed=1)).any()
    report = task.report(tokens)
    assert report["valid"] == 1
    for key in [k for k in report if k.endswith("total_variation")]:
        assert report[key] < 2 * report.get(f"{key}_chance", 0.01), key
    with pytest.raises(UserError, match=f"expected \\[N, {task.length}\\]"):
        task.report(np.zeros((3, task.length + 1)))


@pytest.mark.parametrize("name", TASKS)
def test_report_counts_exactly_the_corrupted_rows(name):
    task = make_task(name)
    tokens = task.sample(200, seed=0)
    tokens[:50] = -1
    assert task.report(tokens)["valid"] == 0.75
    noise = np.random.default_rng(0).integers(0, task.tokenizer.vocab_size, (500, task.length))
    assert task.report(noise)["valid"] < 0.6
    assert task.report(noise.clip(0, 0))["valid"] == 0


@pytest.mark.parametrize("name", WITH_PROBLEMS)
def test_problems_hide_the_answer_and_are_solved_by_keeping_the_rest(name):
    task = make_task(name)
    assert task.has_problems
    problems, given = task.problems(40, seed=3)
    assert problems.dtype == np.int32
    assert given.dtype == bool
    assert problems.shape == given.shape == (40, task.length)
    for again, first in zip(task.problems(40, seed=3), (problems, given)):
        np.testing.assert_array_equal(again, first)
    assert (problems[~given] == 0).all()
    assert (~given).any(axis=1).all()
    # Other right sequences solve nothing: what was given is gone.
    report = task.report_problems(task.sample(40, seed=5), problems, given)
    assert report["solved"] == report["kept"] < 0.2
    assert task.report_problems(problems, problems, given)["kept"] == 1
    assert task.report_problems(problems, problems, given)["solved"] < 0.2
    with pytest.raises(UserError, match="expected one shape"):
        task.report_problems(problems, problems[:, :1], given)


@pytest.mark.parametrize("name", PHRASES)
def test_phrases_have_no_problems(name):
    task = make_task(name)
    assert not task.has_problems
    with pytest.raises(UserError, match="no problems to complete"):
        task.problems(3, seed=0)
    with pytest.raises(UserError, match="no problems to complete"):
        task.report_problems(np.zeros((1, 2)), np.zeros((1, 2)), np.zeros((1, 2), bool))


@pytest.mark.parametrize("name", PHRASES)
def test_samples_follow_the_law(name):
    task = make_task(name)
    assert isinstance(task, LawTask)
    assert sum(task.law.values()) == pytest.approx(1)
    assert task.report(task.sample(20_000, seed=0))["total_variation"] < 0.02


def test_phrases2_is_the_stated_law():
    task = make_task("phrases2")
    law = {task.tokenizer.decode(row): p for row, p in task.law.items()}
    assert law == {"new york": 0.5, "san diego": 0.5}
    assert (task.tokenizer.vocab_size, task.length) == (4, 2)


def test_phrases4_cannot_be_drawn_word_by_word():
    task = make_task("phrases4")
    tokens = task.sample(4000, seed=0)
    shuffled = np.stack([tokens[:, 0], np.roll(tokens[:, 1], 1)], axis=1)
    assert task.report(shuffled)["valid"] < 0.7


def test_report_is_exact():
    task = make_task("phrases2")
    new_york, san_diego = (task.tokenizer.encode(text) for text in ("new york", "san diego"))
    new_diego = task.tokenizer.encode("new diego")
    report = task.report(np.stack([new_york, new_york, san_diego, new_diego]))
    assert report == {"valid": 0.75, "total_variation": pytest.approx(0.25)}
    assert task.report(np.stack([new_york]))["total_variation"] == pytest.approx(0.5)
    assert task.report(np.stack([new_diego])) == {"valid": 0.0, "total_variation": 1.0}


def test_source_examples_depend_on_seed_and_index_alone():
    task = make_task("phrases4")
    short, long = task.source(10, seed=3), task.source(1000, seed=3)
    np.testing.assert_array_equal(short[7]["tokens"], long[7]["tokens"])
    rows = np.stack([long[i]["tokens"] for i in range(1000)])
    assert task.report(rows)["total_variation"] < 0.06
    other = task.source(1000, seed=4)
    assert any((other[i]["tokens"] != rows[i]).any() for i in range(20))
    how = {"threads": 1, "prefetch": 4, "prefix_crop": 0.0}
    batch = next(make_iterator(long, global_batch=16, seed=0, **how))
    assert batch["tokens"].shape == (16, 2)
    assert batch["mask"].all()


def test_errors():
    with pytest.raises(UserError, match="did you mean 'phrases2'"):
        make_task("phrase2")
    with pytest.raises(UserError, match="got size 0"):
        make_task("phrases2").source(0, seed=0)
    with pytest.raises(UserError, match="adding up to 0.5; expected 1"):
        GrammarTask("bad", {"S": [("x", 0.5)]})
    with pytest.raises(UserError, match="expected two symbols, or one word"):
        GrammarTask("bad", {"S": [("S S S", 0.5), ("x", 0.5)]})
    with pytest.raises(UserError, match="no sentence has at most 1 words"):
        GrammarTask("bad", {"S": [("X X", 1.0)], "X": [("x", 1.0)]}, length=1)
