"""Sums: samples against Python's integers, laws by listing, reports."""

import itertools
from collections import Counter

import numpy as np
import pytest

from flm_jax.data.tasks.arithmetic import ArithmeticTask
from flm_jax.data.tasks.registry import make_task


@pytest.mark.parametrize("reverse", [False, True])
def test_arithmetic_against_python_integers(reverse):
    task = make_task("arithmetic_reversed" if reverse else "arithmetic")

    def numbers(row):
        text = task.tokenizer.decode(row).replace(" ", "")
        a, b, c = text.replace("=", "+").split("+")
        assert (len(a), len(b), len(c)) == (3, 3, 4)
        return [int(x[::-1] if reverse else x) for x in (a, b, c)]

    rows = task.sample(300, seed=0)
    assert all(a + b == c for a, b, c in map(numbers, rows))
    # Every digit of every answer counts.
    for place, row in itertools.product(range(8, 12), rows[:5]):
        wrong = row.copy()
        wrong[place] = (wrong[place] + 1) % 10
        assert task.report(wrong[None])["valid"] == 0
        assert task.report(wrong[None])["format"] == 1
    moved = np.roll(rows, 1, axis=1)
    assert task.report(moved)["format"] == 0
    problems, given = task.problems(50, seed=1)
    sums = [sum(map(int, pair)) for pair in _summands(task, problems, reverse)]
    answers = [str(c).zfill(4)[:: -1 if reverse else 1] for c in sums]
    solved = np.where(given, problems, 0)
    solved[:, 8:] = [[int(d) for d in answer] for answer in answers]
    assert task.report_problems(solved, problems, given) == {"solved": 1.0, "kept": 1.0}
    solved[:10, 11] = (solved[:10, 11] + 1) % 10
    assert task.report_problems(solved, problems, given)["solved"] == 0.8


def _summands(task, rows, reverse):
    for row in rows:
        pieces = task.tokenizer.decode(row).replace(" ", "").split("=")[0].split("+")
        yield [piece[::-1] if reverse else piece for piece in pieces]


def test_arithmetic_laws_by_listing_every_pair():
    task = make_task("arithmetic")
    carries, answers = Counter(), Counter()
    for a, b in itertools.product(range(1000), range(1000)):
        pattern = (a % 10 + b % 10 > 9) | (a % 100 + b % 100 > 99) << 1 | (a + b > 999) << 2
        carries[pattern] += 1
        answers[(a + b) // 100] += 1
    np.testing.assert_allclose(task.carry_law, [carries[i] / 1e6 for i in range(8)], atol=1e-12)
    np.testing.assert_allclose(task.answer_law, [answers[i] / 1e6 for i in range(20)], atol=1e-12)


def test_arithmetic_report_sees_collapse_to_easy_sums():
    task = make_task("arithmetic")
    a, b = np.random.default_rng(0).integers(0, 5, (2, 2000)) * 111  # never a carry
    report = task.report(task.write(a, b))
    assert report["valid"] == 1
    assert report["carry_total_variation"] == pytest.approx(1 - task.carry_law[0])
    assert report["answer_total_variation"] > 0.3
    assert report["repeated"] == 1 - 25 / 2000


def test_arithmetic_report_counts_what_is_not_valid_in_full():
    task = ArithmeticTask(digits=1)
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(10), np.arange(10)))
    right = task.write(a, b)
    assert task.report(right)["answer_total_variation"] == pytest.approx(0, abs=1e-12)
    report = task.report(np.concatenate([right, right[:, ::-1]]))
    assert report["valid"] == report["format"] == 0.5
    assert report["answer_total_variation"] == pytest.approx(0.5)
    assert report["carry_total_variation"] == pytest.approx(0.5)
