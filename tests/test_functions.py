"""Python functions written to specifications: programs, unit tests and rewards."""

import itertools
import json

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.tasks.functions import FunctionTask, body
from flm_jax.data.tasks.registry import make_task
from flm_jax.data.tasks.tiny_python import passes
from flm_jax.evaluation.benchmarks.sandbox import Limits, open_sandbox, run_program
from flm_jax.training.task_rewards import check_reward, make_reward

TASK = FunctionTask()
OPERATIONS = ("add", "sub", "times")
ODD = [
    "",
    "# return x",
    "return",
    "return x ;",
    "return x # return 1",
    "x ; return x",
    "return ( x",
    "return - x * - 1",
    "return + - + x",
    "return x * * 2",
    "return 3 x",
    "return x 3",
    "( x ) += 1 ; return x",
    "( ) += 1 ; return x",
    "x += ( ) ; return x",
    "x *= ( ) ; x += ( ) ; return x",
    "( ) * 3 ; return x",
    "( ) + x ; return x",
    "return ( ) * x",
    "- ( ) ; return x",
    "return x ; x += ( )",
    "return x ( 3 )",
    "3 ( x ) ; return x",
    "return x ; 3 ( x )",
    "x ( * x ) ; return x",
    "return x ; return ( * x )",
    "return * x",
    "return x ; return * x",
    "( * x ) ; return x",
    "return add",
    "add += 1 ; return x",
    "return x ; add",
    "x += 1 ; ; return x",
    "x += return",
    "x -= x ; return x",
    "x *= x ; x *= x ; return x * x",
    "return x\n",
    "?",
]

JUDGE = """
import json, warnings
warnings.simplefilter("ignore")
right = []
for body, tests in json.loads({cases!r}):
    names = {{}}
    try:
        exec("def f(x): " + body.replace(chr(10), " "), names)
        right.append(all(names["f"](x) == value for x, value in tests))
    except Exception:
        right.append(False)
print(json.dumps(right))
"""


def specification(text):
    words = text.split()
    return [(name, int(number)) for name, number in zip(words[::2], words[1::2])]


def row(asked, written):
    words = asked.split() + written.split()
    return TASK.tokenizer.encode(" ".join(words + ["#"] * (TASK.length - len(words))))


def test_results_are_those_of_python_in_the_sandbox():
    """On right programs, on ones in which words were replaced, on noise and on oddities."""
    rng = np.random.default_rng(0)
    rows = TASK.sample(900, seed=0)
    for count, part in ((1, rows[300:600]), (3, rows[600:])):
        places = rng.integers(8, 24, (300, count))
        part[np.arange(300)[:, None], places] = rng.integers(0, 24, (300, count))
    noise = rows[:300].copy()
    noise[:, 12:] = rng.integers(0, 24, (300, 12))
    cases = [
        (TASK.body(row), TASK.tests(TASK.specification(row)))
        for row in np.concatenate([rows, noise])
    ]
    same = [(x, x) for x in (-5, 0, 1, 2, 9)]
    cases += [(text, same) for text in ODD if "\n" not in text]
    program = JUDGE.format(cases=json.dumps(cases))
    outcome = run_program(open_sandbox(Limits(seconds=20.0)), program + "pass\n")
    assert outcome.status == "passed", outcome.detail
    wanted, got = json.loads(outcome.output), [passes(*case) for case in cases]
    assert [cases[i] for i in range(len(cases)) if got[i] != wanted[i]] == []
    assert sum(wanted[:300]) == 300 and 0 < sum(wanted[300:900]) < 300
    assert 3 < sum(wanted[1200:]) < len(ODD) - 3


def test_a_body_is_one_line():
    assert not passes("return x\nimport os", [(1, 1)])
    assert not passes("return x\rimport os", [(1, 1)])


@pytest.mark.parametrize("hostile", ["__import__('os').getcwd()", "open('/etc/passwd')", "9**9**9"])
def test_nothing_outside_the_language_is_run(hostile):
    assert not passes(f"{hostile} ; return x", [(1, 1)])
    assert not passes(f"return {hostile}", [(1, 1)])


def test_every_form_of_every_program_is_right_and_fits():
    longest = 0
    for names in itertools.product(OPERATIONS, repeat=4):
        spec = list(zip(names, (3, 2, 9, 4)))
        for statements, swap in itertools.product(range(4), ([False] * 4, [True] * 4)):
            words = body(spec, statements, swap)
            assert passes(" ".join(words), TASK.tests(spec)), (spec, words)
            longest = max(longest, len(words))
    assert longest == TASK.answer_length


def test_a_specification_has_many_right_programs():
    spec = specification("add 3 times 2 sub 1 add 4")
    swaps = list(itertools.product([False, True], repeat=4))
    forms = {" ".join(body(spec, k, swap)) for k in range(4) for swap in swaps}
    assert len(forms) == 8 + 4 + 2 + 2
    assert "return ( x + 3 ) * 2 - 1 + 4" in forms
    assert "x += 3 ; x *= 2 ; return 4 + x - 1" in forms
    # Others than the task's own count as well, by their tests.
    assert passes("return x * 2 + 9", TASK.tests(spec))
    assert not passes("return x * 2 + 8", TASK.tests(spec))
    assert TASK.tests(spec) == [(-5, -1), (0, 9), (1, 11), (2, 13), (9, 27)]


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
        name: make_reward(name, TASK)(rows, problems, given).tolist()
        for name in ("exact_match", "unit_tests", "length_free")
    }
    assert rewards == {
        "exact_match": [1, 0, 0, 0, 0, 0],
        "unit_tests": [1, 1, 1, 0, 0, 0],
        "length_free": [1, 1, 0, 0, 0, 0],
    }
    solved = TASK.report_problems(rows, problems, given)
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
