"""Numbers of GSM8K answers: the authors' rules case by case, and this library's own.

Texts and numbers are compared exactly, so there are no tolerances here.
"""

import time
from fractions import Fraction

import pytest

from flm_jax.evaluation.benchmarks import gsm8k, gsm8k_numbers
from flm_jax.evaluation.benchmarks.gsm8k_numbers import (
    canonical,
    marked_number,
    number,
    reference_flexible,
    reference_gold,
    reference_strict,
)
from helpers.goldens_mlfm import record

GOLDEN = record("evals")
CASES = GOLDEN["gsm8k_extraction"]
# Of their cases those that our rule reads otherwise than their last number, and as what.
OURS = {
    "#### 1200\nQ: next problem 7": 1200,
    "### 12 00": 12,
    "### 1.2e3": 1200,
    "### .5": Fraction(1, 2),
    "### 1200-1": 1200,
    "### 1200 = 10*120": 1200,
    "### \\frac{3}{4}": Fraction(3, 4),
    "### 1200\r\nfoo 5": 1200,
    "### €1.200,00": Fraction(6, 5),
    "### 7.0/2": Fraction(7, 2),
    "### 2:30": 2,
    "### 1 200": 1,
    "### 1,2,0,0": 1,
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["text"])[:24])
def test_the_reference_reads_as_its_authors_code(case):
    text, right = case["text"], GOLDEN["gsm8k_reference"]
    assert reference_strict(text) == case["strict"]
    assert reference_flexible(text) == case["flexible"]
    assert reference_gold(text) == case["gold_style"]
    problem = gsm8k.WordProblem("", f"#### {right}", Fraction(right))
    row = gsm8k.reference_score(problem, text)
    assert row["reference_right"] == case["flexible_equals_ref"]
    assert row["reference_strict_right"] == case["strict_equals_ref"]


def test_all_cases_are_there():
    assert len(CASES) == 66 and set(OURS) < {case["text"] for case in CASES}


@pytest.mark.parametrize("text, want", GOLDEN["gsm8k_canonicalize"].items())
def test_canonical_numbers_are_those_of_the_authors_code(text, want):
    assert canonical(text) == want


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["text"])[:24])
def test_ours_reads_their_cases(case):
    theirs = case["flexible"] and Fraction(case["flexible"])
    assert number(case["text"]) == OURS.get(case["text"], theirs)


@pytest.mark.parametrize(
    "texts, value",
    [
        (["20.00", "20", "$20", "\\$20.0", "It is 20.", "**20**", "20%", "<<4*5=20>>20"], 20),
        (["1,234.50", "1234.5", "$1,234.5", "1{,}234.5", "1\\,234.50", "1,\\!234.50"], 1234.5),
        ([".5", "0.5", "$.5", "1/2", "\\frac{1}{2}", "\\dfrac{1}{2}", "0.50", "5e-1"], 0.5),
        (["9{,}500", "9,500", "9500", "\\boxed{9{,}500}", "$9,500.00"], 9500),
        (["-20", "\u221220", "$-20", "-$20", "\u221220.0", "#### \u221220", "a loss of -20"], -20),
        (["3/4", "3 / 4", "0.75", ".75", "6/8"], 0.75),
        (["72", "**72**", "### **72**", "#### 72", "(72)", "#### $72", "72 eggs", "x = 72"], 72),
    ],
)
def test_equal_numbers_are_equal(texts, value):
    assert {number(text) for text in texts} == {Fraction(value)}


@pytest.mark.parametrize(
    "text, value",
    [
        ("#### 1\n### 2", 2),  # the last marker, of either kind
        ("### 2\n#### 1\nSo 7.", 1),
        ("### Step 2\nThat is 9.", 9),  # a heading, no result
        ("### 9\n### Notes", 9),
        ("### 20 - 5 = 15", 15),
        ("### 15 = 20 - 5", 15),
        ("10-5", 5),
        ("from 10 to -5", -5),
        ("10\u201320", 20),
        ("on 3,4 or 12,2023", 2023),
        ("1/0", None),
        ("1" * 5000, None),  # no number that Python reads
        ("none", None),
    ],
)
def test_which_number_is_read(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    "result, answer, right",
    [  # the table of docs/guides/benchmarks.md
        ("20", "#### 20.00", {"number", "reference"}),
        ("1234.5", "#### 1,234.50", {"number", "reference"}),
        ("0.5", "### .5", {"number"}),
        ("9500", "It is 9{,}500.", {"number"}),
        ("-20", "### $-20", {"number", "flexible", "reference"}),
        ("-20", "### \u221220", {"number"}),
        ("0.75", "### 3/4", {"number"}),
        ("72", "### **72**", {"number", "flexible", "reference"}),
        ("1200", "### 1200\nCheck: 5", {"number", "strict"}),
        ("1200", "### 1199\n### 1200", {"number", "flexible", "reference"}),
        ("1200", "1200 is 3 times 400", set()),
    ],
)
def test_what_the_rules_make_of_answers(result, answer, right):
    problem = gsm8k.WordProblem("", f"#### {result}", Fraction(result))
    row = gsm8k.gsm8k_score(problem, answer, True) | gsm8k.reference_score(problem, answer)
    assert {rule for rule in gsm8k.RULES[:4] if row[f"{rule}_right"]} == right


def test_only_a_marked_number_is_a_result():
    assert marked_number("It is 5.\n#### 1,000") == 1000
    assert marked_number("It is 5.") is None


def test_right_answers_have_the_authors_numbers():
    given = GOLDEN["gsm8k_prompt"]
    assert reference_gold(given["answer"]) == given["gold"] == GOLDEN["gsm8k_golds_first_20"][0]
    assert str(marked_number(given["answer"])) == given["gold"]


@pytest.mark.parametrize(
    "text", ["#", "### ", "=1", "###=1", "<<", "1,", "1 ", "\\frac{", "-", "1."]
)
def test_long_answers_take_no_time(text):
    answer, start = text * 4000, time.perf_counter()
    for rule in (number, reference_flexible, reference_strict, gsm8k_numbers.strict):
        rule(answer)
    gsm8k_numbers.flexible(answer)
    assert time.perf_counter() - start < 2  # seconds; a square of the length took 20
