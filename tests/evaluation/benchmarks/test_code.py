"""HumanEval and MBPP: files, programs made of answers, pass@k, references that all pass."""

import gzip
import itertools
import json

import pytest

from flm_jax.core.errors import UserError
from flm_jax.evaluation.benchmarks.code import (
    code_block,
    humaneval_program,
    humaneval_prompt,
    mbpp_program,
    mbpp_prompt,
    pass_at_k,
    read_humaneval,
    read_mbpp,
)
from flm_jax.evaluation.benchmarks.sandbox import Limits, open_sandbox, run_programs
from helpers.benchmarks import HUMANEVAL, mbpp_problem


def lines(path, *records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    return read_humaneval(lines(tmp_path_factory.mktemp("he") / "a.jsonl.gz", HUMANEVAL))[0]


def passes(programs):
    outcomes = list(run_programs(open_sandbox(Limits(seconds=20)), programs))
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
    ]
    programs = [mbpp_program(problems[0], answer, chat) for answer, chat, _ in cases]
    assert passes(programs) == [good for *_, good in cases]
    few = lines(tmp_path / "b.jsonl", mbpp_problem(600))
    assert [p.id for p in read_mbpp(few)[0]] == ["MBPP/600"]


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


def test_the_longest_block_is_taken():
    assert code_block("no fence") is None
    assert code_block("```py\na\n```\n```\nlonger\n```") == "longer\n"


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
