"""Rewards of answers, by what is right in them."""

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.tasks.registry import make_task
from flm_jax.training.task_rewards import check_reward, make_reward
from helpers.texts import FUNCTIONS


def row(asked, written):
    words = asked.split() + written.split()
    return FUNCTIONS.tokenizer.encode(" ".join(words + ["#"] * (FUNCTIONS.length - len(words))))


def test_rewards_differ_in_what_is_right():
    asked = "add 3 times 2 sub 1 add 4"
    written = [
        "return ( x + 3 ) * 2 - 1 + 4",  # the reference
        "return ( x + 3 ) * 2 - 1 + 4 # x ;",  # right up to what ends it
        "x += 3 ; x *= 2 ; return x - 1 + 4",
        "return ( x + 3 ) * 2 - 4 + 1",
    ]
    rows = np.stack([row(asked, text) for text in [*written, written[0], written[0]]])
    given = np.tile(np.arange(24) < 8, (6, 1))
    problems = rows * given
    problems[4, 1] = rows[4, 1] + 1  # another one was asked
    rows[5, 1] += 1  # what was asked is written over
    rewards = {
        name: make_reward(name, FUNCTIONS)(rows, problems, given).tolist()
        for name in ("exact_match", "unit_tests", "length_free")
    }
    assert rewards == {
        "exact_match": [1, 0, 0, 0, 0, 0],
        "unit_tests": [1, 1, 1, 0, 0, 0],
        "length_free": [1, 1, 0, 0, 0, 0],
    }
    solved = FUNCTIONS.report_problems(rows, problems, given)
    assert solved == {"solved": 3 / 6, "kept": 4 / 6}


@pytest.mark.parametrize("name", ["arithmetic", "arithmetic_reversed"])
def test_length_free_sums_may_be_padded_less(name):
    task = make_task(name)
    problems, given = task.problems(50, seed=0)
    right = task.references(problems, given)
    assert task.report_problems(right, problems, given)["solved"] == 1.0
    exact, free = (make_reward(kind, task) for kind in ("exact_match", "length_free"))
    assert exact(right, problems, given).all() and free(right, problems, given).all()
    # 12 + 7 = 0019: "=19" behind the sign that was given.
    short = task.write(np.array([12]), np.array([7]))
    digits = short[0, 10:12] if name == "arithmetic" else short[0, 8:10]
    padded = [0, 11] if name == "arithmetic" else [11]
    text = np.array([*padded, *digits] if name == "arithmetic" else [0, *padded, *digits])
    other = short.copy()
    other[0, 8:] = text
    asked, mask = short * given[:1], given[:1]
    assert (exact(other, asked, mask).item(), free(other, asked, mask).item()) == (0.0, 1.0)
    other[0, 8:] = [0, 0, 0, 0]
    assert free(other, asked, mask).item() == 0.0


def test_rewards_are_refused_where_a_task_has_no_such_answers():
    with pytest.raises(UserError, match="are no programs"):
        make_reward("unit_tests", make_task("arithmetic"))
    with pytest.raises(UserError, match="no reference answers"):
        make_reward("length_free", make_task("grammar"))
    with pytest.raises(UserError, match="valid: exact_match"):
        check_reward("exact")
    task = make_task("grammar")
    problems, given = task.problems(8, seed=0)
    right = make_reward("exact_match", task)(task.sample(8, seed=0), problems, given)
    assert right.tolist() == [1.0] * 8
