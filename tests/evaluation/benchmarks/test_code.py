"""HumanEval and MBPP: files, programs made of answers, pass@k, references that all pass."""

import gzip
import itertools
import json
import os
import textwrap
from pathlib import Path

import pytest

from flm_jax.core.errors import UserError
from flm_jax.evaluation.benchmarks.code import (
    humaneval_program,
    humaneval_prompt,
    mbpp_program,
    mbpp_prompt,
    pass_at_k,
    read_humaneval,
    read_mbpp,
)
from flm_jax.evaluation.benchmarks.sandbox import Limits, run_programs
from helpers.benchmarks import HUMANEVAL, mbpp_problem
from helpers.sandbox import opened

PUBLISHED = Path(os.environ.get("FLM_JAX_BENCHMARKS", "absent"))


def lines(path, *records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    return read_humaneval(lines(tmp_path_factory.mktemp("he") / "a.jsonl.gz", HUMANEVAL))[0]


def passes(programs):
    outcomes = list(run_programs(opened(Limits(seconds=20)), programs))
    return [outcome.status == "passed" for outcome in outcomes]


def test_humaneval_answers_become_programs(half):
    assert humaneval_prompt(half, False) == HUMANEVAL["prompt"]
    assert half.text.rstrip() in humaneval_prompt(half, True)
    body = HUMANEVAL["canonical_solution"]
    whole = f"def half(x):\n{body}"
    after = "\ndef more(x):\n    this is no Python"
    cases = [
        (body, False, True),
        (body + after, False, True),
        (body + "\nprint(half(1)\n", False, True),
        ("    return x\n", False, False),
        ("", False, False),
        (f"Here you are:\n```python\n{whole}```\nIt halves.", True, True),
        (f"```\n{body}```", True, True),
        (whole, True, True),
        (f"```python\n{whole}", True, True),
        (f"```python\nx = 1\n```\nor\n```python\n{whole}```", True, True),
        ("It cannot be done.", True, False),
        (f"```python\nhalf(4)\n# {'-' * 99}\n```\nfor\n~~~\n{whole}~~~", True, True),
        (f"So:\n  ```\n  def half(x):\n  {body}  ```", True, True),
        (f"It is simple.\n\n{whole}\nIt halves x.", True, True),
        (f"The body is:\n{body}\nwhich halves x.", True, True),
        ("    y = x\n# and then\n    return y / 2", True, True),
        (f"```\nfrom __future__ import annotations\n{whole}```", True, True),
        (f"from __future__ import annotations\nimport math\n{whole}", True, True),
        (f"```\nx = 1\nfrom __future__ import annotations\n{whole}```", True, False),
    ]
    programs = [humaneval_program(half, answer, chat) for answer, chat, _ in cases]
    assert passes(programs) == [good for *_, good in cases]


def test_mbpp_answers_become_programs(tmp_path):
    path = lines(tmp_path / "a.jsonl", *(mbpp_problem(n) for n in (2, 3, 4, 5, 11, 12, 511)))
    problems, shots = read_mbpp(path)
    assert [p.id for p in problems] == ["MBPP/11", "MBPP/12"] and len(shots) == 3
    prompt = mbpp_prompt(problems[0], shots, False)
    assert prompt.count("[BEGIN]") == 4 and prompt.count("[DONE]") == 3
    assert prompt.endswith("assert f(y) == 12\nassert f(0) == 11\n[BEGIN]\n")
    assert "return x + 4\n[DONE]" in prompt and "return x + 11" not in prompt
    asked = mbpp_prompt(problems[0], shots, True)
    assert asked.startswith("Write a function to add 11.") and "[BEGIN]" not in asked
    code = problems[0].solution
    cases = [
        (f"{code}\n[DONE]\nno Python", False, True),
        (f"{code}\nno Python", False, False),
        (f"Yes:\n```python\n{code}\n```\nno Python", True, True),
        ("def f(x): return x", True, False),
        (f"```\n{'f(1)  # as an example' * 9}\n```\n~~~python\n{code}\n~~~", True, True),
        (f"Here it is:\n{code}\nThat is all.", True, True),
        (f"```\nfrom __future__ import annotations\n{code}\n```", True, True),
    ]
    programs = [mbpp_program(problems[0], answer, chat) for answer, chat, _ in cases]
    assert passes(programs) == [good for *_, good in cases]
    few = lines(tmp_path / "b.jsonl", mbpp_problem(600))
    assert [p.id for p in read_mbpp(few)[0]] == ["MBPP/600"]


def sanitized(number):
    """A problem of the sanitized file, whose tests need an import."""
    return {
        "source_file": "a.ipynb",
        "task_id": number,
        "prompt": f"Write a function to add {number}.",
        "code": f"def f(x):\n  return x + {number}",
        "test_imports": ["import math"],
        "test_list": [f"assert f(math.floor(1.5)) == {number + 1}"],
    }


def test_the_sanitized_file_is_read(tmp_path):
    """One array in the place of lines, "prompt" in that of "text", imports of the tests."""
    path = tmp_path / "sanitized-mbpp.json"
    path.write_text(json.dumps([sanitized(n) for n in (2, 3, 4, 11, 12, 600)], indent=2))
    problems, shots = read_mbpp(str(path))
    assert [p.id for p in problems] == ["MBPP/11", "MBPP/12"] and len(shots) == 3
    assert problems[0].text == "Write a function to add 11." and problems[0].names == ("f",)
    prompt = mbpp_prompt(problems[0], shots, False)
    assert prompt.endswith("assert f(math.floor(1.5)) == 12\n[BEGIN]\n")
    programs = [mbpp_program(one, one.solution, False) for one in problems]
    assert passes(programs) == [True, True]
    path.write_text(json.dumps([sanitized(2), sanitized(3) | {"test_imports": "math"}]))
    with pytest.raises(UserError, match="mbpp.json, item 2: expected texts under 'test_imports'"):
        read_mbpp(str(path))
    path.write_text("[1]")
    with pytest.raises(UserError, match="mbpp.json, item 1: expected an object.* got int"):
        read_mbpp(str(path))


def test_what_the_tests_call_is_known(tmp_path):
    pair = "class Pair(object):\n  pass\ndef helper(): pass\ndef chain(a): return 1"
    record = mbpp_problem(601) | {"code": pair, "test_list": ["assert chain([Pair()]) == 1"]}
    assert read_mbpp(lines(tmp_path / "a.jsonl", record))[0][0].names == ("Pair", "chain")
    broken = record | {"code": "def chain(", "test_list": ["assert chain() == 1"]}
    assert read_mbpp(lines(tmp_path / "b.jsonl", broken))[0][0].names == ()


EXAMPLE = "```\n" + "print('an example')  # of how it is used\n" * 200 + "```\n"
FORMS = {
    "prose": lambda code: f"Sure, here it is:\n\n{code}\nIt takes the sum.\nComplexity: O(n).",
    "tildes": lambda code: f"Use:\n{EXAMPLE}Code:\n~~~python\n{code}\n~~~\nDone.",
    "list": lambda code: (
        "1. Code:\n" + textwrap.indent(f"```python\n{code}\n```", "   ") + "\n2. Done.\n"
    ),
    "future": lambda code: f"```python\nfrom __future__ import annotations\n{code}\n```",
    "indented": lambda code: "Code:\n\n" + textwrap.indent(code, "    ") + "\n\nDone.",
}


@pytest.mark.parametrize("form", FORMS)
def test_published_solutions_are_found_in_every_form(form):
    paths = PUBLISHED / "humaneval/HumanEval.jsonl.gz", PUBLISHED / "mbpp/mbpp.jsonl"
    if not all(path.exists() for path in paths):
        pytest.skip("no published files; FLM_JAX_BENCHMARKS is their folder")
    halves, adds = read_humaneval(str(paths[0]))[::4], read_mbpp(str(paths[1]), True)[0][::12]
    told = FORMS[form]
    programs = [humaneval_program(one, told(one.text + one.solution), True) for one in halves]
    programs += [mbpp_program(one, told(one.solution), True) for one in adds]
    assert len(programs) == 41 + 82 and all(passes(programs))


@pytest.mark.parametrize(
    "read, record, message",
    [
        (read_humaneval, HUMANEVAL | {"prompt": None}, "line 2: expected text under 'prompt'"),
        (read_humaneval, {"a": 1}, "line 2: expected text under 'task_id', got None; .* a"),
        (
            read_mbpp,
            mbpp_problem(1) | {"task_id": "1"},
            "line 2: expected a number under 'task_id'",
        ),
        (read_mbpp, mbpp_problem(1) | {"test_list": []}, "line 2: .*texts under 'test_list'"),
        (read_mbpp, mbpp_problem(1) | {"code": ""}, "line 2: expected text under 'code'"),
    ],
)
def test_bad_lines_are_named(tmp_path, read, record, message):
    good = HUMANEVAL if read is read_humaneval else mbpp_problem(5)
    with pytest.raises(UserError, match=message):
        read(lines(tmp_path / "a.jsonl", good, record))
    with pytest.raises(UserError, match="no file"):
        read(str(tmp_path / "absent.jsonl"))
    (tmp_path / "a.jsonl.gz").write_bytes(b"not packed")
    with pytest.raises(UserError, match="cannot be read"):
        read(str(tmp_path / "a.jsonl.gz"))


def test_pass_at_k_counts_choices():
    """Against all choices of k of n answers, of which the first c are right."""
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            choices = list(itertools.combinations(range(n), k))
            share = sum(min(choice) < c for choice in choices) / len(choices)
            assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-15)
    assert pass_at_k(2000, 1, 1000) == 0.5
    for wrong in ((3, 1, 4), (3, 1, 0), (3, 4, 1)):
        with pytest.raises(UserError, match="expected 1 <= k <= answers"):
            pass_at_k(*wrong)
