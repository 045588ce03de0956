"""Written-out sums: rows against Python's integers, and what the figures of answers see."""

import re

import numpy as np
import pytest

from flm_jax.data.tasks.registry import make_task
from flm_jax.data.tokenizers.registry import load_tokenizer


@pytest.fixture(scope="module")
def task():
    return make_task("written_sums")


def text_of(task, row):
    return task.tokenizer.decode(row).replace(" ", "")


def test_rows_are_questions_with_their_solutions(task):
    rows = task.sample(2000, seed=0)
    lengths = set()
    for row in rows:
        text = text_of(task, row)
        question, answer = re.fullmatch(r"([\d+]+)\?(.*?)\.+", text).groups()
        *lines, result = answer.split(";")
        numbers = list(map(int, question.split("+")))
        total = numbers[0]
        for number, line in zip(numbers[1:], lines, strict=True):
            assert line == f"{total}+{number}={total + number}"
            total += number
        assert result == f"#{sum(numbers)}"
        lengths.add(len(question) + len(answer) + 1)
    assert max(lengths) < task.length and min(lengths) < 20
    assert task.report(rows)["valid"] == 1.0
    wrong = rows.copy()
    wrong[:500, -1] = 0  # a digit in the padding
    assert task.report(wrong)["valid"] == 0.75


def test_figures_of_answers(task):
    problems, given = task.problems(400, seed=1)
    assert np.all(problems[~given] == 0)
    right = task.references(problems, given)
    every = {"solved": 1.0, "written": 1.0, "length": 1.0, "kept": 1.0}
    assert task.report_problems(right, problems, given) == every
    ends = np.argmax((right == task.tokenizer.eos_id) & ~given, axis=1)
    rows = np.arange(100)
    slip = right.copy()
    slip[rows, ends[:100] - 1] = (slip[rows, ends[:100] - 1] + 1) % 10  # the result's last digit
    assert task.report_problems(slip, problems, given) == every | {"solved": 0.75, "written": 0.75}
    longer = right.copy()
    longer[rows, ends[:100]] = 0
    expected = every | {"solved": 0.75, "written": 0.75, "length": 0.75}
    assert task.report_problems(longer, problems, given) == expected
    noisy = right.copy()
    noisy[:40, -1] = 3  # behind the end of text: no longer the solution, the same answer
    assert task.report_problems(noisy, problems, given) == every | {"written": 0.9}
    lost = right.copy()
    lost[:, 1] = (lost[:, 1] + 1) % 10
    assert task.report_problems(lost, problems, given)["kept"] == 0.0


def test_the_end_of_text_is_saved_with_the_tokenizer(task, tmp_path):
    task.tokenizer.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert loaded.eos_id == task.tokenizer.eos_id == 15
    assert loaded.fingerprint == task.tokenizer.fingerprint


def test_problems_with_their_answers_are_examples_with_prompts(task):
    source = task.source(50, seed=2, prompts=True)
    problems, given = task.problems(50, seed=2)
    for i in (0, 49):
        example = source[i]
        np.testing.assert_array_equal(example["prompt"], given[i])
        np.testing.assert_array_equal(example["tokens"], task.references(problems, given)[i])
    assert "prompt" not in task.source(50, seed=2)[0]
    assert source.fingerprint != task.source(50, seed=2).fingerprint
