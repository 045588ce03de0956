"""Synthetic tasks: reproducible samples and exact reports."""

import numpy as np
import pytest

from flm_jax.data.pipeline import make_iterator
from flm_jax.data.tasks import TASKS, make_task
from flm_jax.types import UserError


@pytest.mark.parametrize("name", TASKS)
def test_samples_follow_the_law(name):
    task = make_task(name)
    assert sum(task.law.values()) == pytest.approx(1)
    tokens = task.sample(20_000, seed=0)
    assert tokens.shape == (20_000, task.length)
    assert tokens.dtype == np.int32
    report = task.report(tokens)
    assert report["valid"] == 1
    assert report["total_variation"] < 0.02
    np.testing.assert_array_equal(tokens, task.sample(20_000, seed=0))
    assert (tokens != task.sample(20_000, seed=1)).any()


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
    with pytest.raises(UserError, match="expected \\[N, 2\\]"):
        task.report(np.zeros((3, 5)))


def test_source_examples_depend_on_seed_and_index_alone():
    task = make_task("phrases4")
    short, long = task.source(10, seed=3), task.source(1000, seed=3)
    np.testing.assert_array_equal(short[7]["tokens"], long[7]["tokens"])
    rows = np.stack([long[i]["tokens"] for i in range(1000)])
    assert task.report(rows)["total_variation"] < 0.06
    other = task.source(1000, seed=4)
    assert any((other[i]["tokens"] != rows[i]).any() for i in range(20))
    batch = next(make_iterator(long, global_batch=16, seed=0))
    assert batch["tokens"].shape == (16, 2)
    assert batch["mask"].all()


def test_errors():
    with pytest.raises(UserError, match="did you mean 'phrases2'"):
        make_task("phrase2")
    with pytest.raises(UserError, match="got size 0"):
        make_task("phrases2").source(0, seed=0)
