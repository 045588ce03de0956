"""Python functions written to specifications: programs and their unit tests."""

import itertools
import json

import numpy as np
import pytest

from flm_jax.data.tasks.functions import body
from flm_jax.data.tasks.tiny_python import passes
from flm_jax.evaluation.benchmarks.sandbox import Limits, run_program
from helpers.sandbox import opened
from helpers.texts import FUNCTIONS

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


def test_results_are_those_of_python_in_the_sandbox():
    """On right programs, on ones in which words were replaced, on noise and on oddities."""
    rng = np.random.default_rng(0)
    rows = FUNCTIONS.sample(900, seed=0)
    for count, part in ((1, rows[300:600]), (3, rows[600:])):
        places = rng.integers(8, 24, (300, count))
        part[np.arange(300)[:, None], places] = rng.integers(0, 24, (300, count))
    noise = rows[:300].copy()
    noise[:, 12:] = rng.integers(0, 24, (300, 12))
    cases = [
        (FUNCTIONS.body(row), FUNCTIONS.tests(FUNCTIONS.specification(row)))
        for row in np.concatenate([rows, noise])
    ]
    same = [(x, x) for x in (-5, 0, 1, 2, 9)]
    cases += [(text, same) for text in ODD if "\n" not in text]
    program = JUDGE.format(cases=json.dumps(cases))
    outcome = run_program(opened(Limits(seconds=20.0)), program + "pass\n")
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
            assert passes(" ".join(words), FUNCTIONS.tests(spec)), (spec, words)
            longest = max(longest, len(words))
    assert longest == FUNCTIONS.answer_length


def test_a_specification_has_many_right_programs():
    spec = specification("add 3 times 2 sub 1 add 4")
    swaps = list(itertools.product([False, True], repeat=4))
    forms = {" ".join(body(spec, k, swap)) for k in range(4) for swap in swaps}
    assert len(forms) == 8 + 4 + 2 + 2
    assert "return ( x + 3 ) * 2 - 1 + 4" in forms
    assert "x += 3 ; x *= 2 ; return 4 + x - 1" in forms
    # Others than the task's own count as well, by their tests.
    assert passes("return x * 2 + 9", FUNCTIONS.tests(spec))
    assert not passes("return x * 2 + 8", FUNCTIONS.tests(spec))
    assert FUNCTIONS.tests(spec) == [(-5, -1), (0, 9), (1, 11), (2, 13), (9, 27)]
