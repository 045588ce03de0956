"""HumanEval and MBPP: problems, prompts, programs from answers, and unbiased pass@k.

HumanEval: arXiv 2107.03374. A model continues a function's header and docstring; its text is cut
where the function ends. MBPP: arXiv 2108.07732. The prompt has three solved tasks, each with its
tests, and the model writes code up to [DONE]. If asked as a question instead (`chat`), it may
answer in prose with code in it (`answer_code`).
"""

import ast
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from flm_jax.core.errors import require
from flm_jax.data.jsonl import read_records, text_field
from flm_jax.evaluation.benchmarks.answer_code import (
    answer_code,
    body_among_prose,
    defined,
    parsed,
    split_futures,
)
from flm_jax.evaluation.benchmarks.base import (
    _OUTPUT_KEPT,
    Benchmark,
    Choices,
    Record,
    limited,
    solved_examples,
)
from flm_jax.evaluation.benchmarks.sandbox import Program, Sandbox, run_programs
from flm_jax.inference.prompts import Prompt
from flm_jax.metrics.intervals import interval, share_interval

_AFTER_FUNCTION = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")  # of the HumanEval paper
_DONE = "[DONE]"
_SHOTS = (2, 3, 4)  # tasks of MBPP that are shown, in the paper's split for prompts
TEST_SPLIT, TRAINING_SPLIT = range(11, 511), range(601, 975)


class CodeProblem(NamedTuple):
    """A programming problem.

    Attributes:
      id: identifier in the data file.
      text: header and docstring of the function (HumanEval), or the task in words (MBPP).
      names: names of the functions and classes of the solution that the tests call.
      tests: Python statements that fail by an exception.
      setup: statements before the tests (MBPP).
      solution: reference solution: the function's body (HumanEval) or a complete program (MBPP).
    """

    id: str
    text: str
    names: tuple[str, ...]
    tests: tuple[str, ...]
    setup: str
    solution: str


def read_humaneval(path: str) -> list[CodeProblem]:
    """Reads problems in HumanEval's format (.jsonl or .jsonl.gz).

    Raises:
      UserError: no such file, or a bad line, whose number the message names.
    """
    found = []
    for where, record in read_records(path, "JSON lines of HumanEval"):
        names = ("task_id", "prompt", "entry_point", "test", "canonical_solution")
        task, prompt, entry, test, solution = (text_field(record, name, where) for name in names)
        tests = test, f"check({entry})"
        found.append(CodeProblem(task, prompt, (entry,), tests, "", solution))
    return found


def read_mbpp(
    path: str, whole: bool = False, split: range = TEST_SPLIT
) -> tuple[list[CodeProblem], list[CodeProblem]]:
    """Reads problems in MBPP's format: the problems of a split, or all if it contains none.

    The sanitized file (sanitized-mbpp.json, one array) is read as well: it has "prompt" for "text"
    and "test_imports" for "test_setup_code".

    Args:
      path: path of the file.
      whole: whether to return all problems.
      split: numbers of the wanted problems, by default the paper's test split.

    Returns:
      The problems, and those to show in a prompt.

    Raises:
      UserError: no such file, or a bad line, whose number the message names.
    """
    found = {}
    for where, record in read_records(path, "JSON lines of MBPP"):
        number, tests = record.get("task_id"), record.get("test_list")
        require(
            type(number) is int
            and isinstance(tests, list)
            and bool(tests)
            and all(isinstance(test, str) for test in tests),
            f"{where}: expected a number under 'task_id' and texts under 'test_list', got "
            f"{number!r} and {tests!r}.",
        )
        words = "prompt" if "text" not in record and "prompt" in record else "text"
        text, code = (text_field(record, n, where).replace("\r", "") for n in (words, "code"))
        imports = record.get("test_imports") or []
        require(
            isinstance(imports, list) and all(isinstance(line, str) for line in imports),
            f"{where}: expected texts under 'test_imports', got {imports!r}.",
        )
        setup = "\n".join(filter(None, [*imports, str(record.get("test_setup_code") or "")]))
        names = _called(tests, code)
        found[number] = CodeProblem(f"MBPP/{number}", text, names, tuple(tests), setup, code)
    problems = [problem for number, problem in found.items() if whole or number in split]
    return problems or list(found.values()), [found[n] for n in _SHOTS if n in found]


def _called(tests: Sequence[str], code: str) -> tuple[str, ...]:
    """Functions and classes of some code that its tests name."""
    tree, called = parsed(code), parsed("\n".join(tests))
    if tree is None or called is None:
        return ()
    words = {node.id for node in ast.walk(called) if isinstance(node, ast.Name)}
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    made = [node.name for node in tree.body if isinstance(node, kinds)]
    return tuple(dict.fromkeys(name for name in made if name in words))


def humaneval_prompt(problem: CodeProblem, chat: bool) -> str:
    """Returns the prompt of a HumanEval problem."""
    if not chat:
        return problem.text
    return (
        f"Complete this Python function. Answer with the whole function, in a code block.\n"
        f"```python\n{problem.text.rstrip()}\n```"
    )


def mbpp_prompt(problem: CodeProblem, shots: Sequence[CodeProblem], chat: bool) -> str:
    """Returns the prompt of an MBPP problem: the paper's, after solved ones; or a question."""
    tests = "\n".join(problem.tests)
    if chat:
        return (
            f"{problem.text.strip()}\nAnswer with Python code, in a code block, that passes these "
            f"tests:\n{tests}"
        )
    shown = [f"{_task(shot)}{shot.solution}\n{_DONE}\n\n" for shot in shots]
    return "".join(shown) + _task(problem)


def _task(problem: CodeProblem) -> str:
    tests = "\n".join(problem.tests)
    return (
        f"You are an expert Python programmer, and here is your task: {problem.text.strip()} Your "
        f"code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def humaneval_program(problem: CodeProblem, answer: str, chat: bool) -> Program:
    """Builds the program of an answer with its tests.

    A continuation follows the header and is cut where another top-level statement begins. In a chat
    answer the code counts: if it defines the function, it replaces header and body, after the text
    before the header, such as imports; else it is the body. The tests include the text before the
    header as well, so that they need no helper from the answer.
    """
    before = problem.text[: max(problem.text.rfind(f"def {problem.names[0]}"), 0)]
    more = "\n".join(problem.tests), before, problem.names
    if not chat:
        places = [place for stop in _AFTER_FUNCTION if (place := answer.find(stop)) >= 0]
        return Program(f"{problem.text}{answer[: min(places, default=None)]}\n", *more)
    code = answer_code(answer, problem.names)
    if not defined(code, problem.names):
        if parsed(problem.text + code) is None:
            code = body_among_prose(code)
        return Program(f"{problem.text}{code}\n", *more)
    futures, code = split_futures(code)
    return Program(f"{futures}{before}\n{code}\n", *more)


def mbpp_program(problem: CodeProblem, answer: str, chat: bool) -> Program:
    """Builds the program of an answer with its tests: the text up to [DONE], or a chat's code."""
    code = answer.partition(_DONE)[0].replace("\r", "")
    code = answer_code(code, problem.names) if chat else code
    tests = "\n".join(problem.tests)
    return Program(f"{code}\n{problem.setup}\n", tests, problem.setup, problem.names)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased probability that one of k answers is correct: 1 - C(n-c, k) / C(n, k).

    Source: arXiv 2107.03374, eq. 1.

    Args:
      samples: n answers of a problem, of which `right` = c passed.

    Raises:
      UserError: unless 1 <= k <= n and 0 <= c <= n.
    """
    require(
        1 <= k <= samples and 0 <= right <= samples,
        f"got pass@{k} of {samples} answers, {right} right; expected 1 <= k <= answers.",
    )
    # In exact fractions, since binomials of many answers are too large for floats.
    return float(1 - Fraction(math.comb(samples - right, k), math.comb(samples, k)))


def _tested(sandbox: Sandbox, programs: Sequence[Program]) -> list[Record]:
    return [
        {
            "passed": outcome.status == "passed",
            "status": outcome.status,
            "detail": outcome.detail,
            "output": outcome.output[:_OUTPUT_KEPT],
            "seconds": round(outcome.seconds, 3),
        }
        for outcome in run_programs(sandbox, programs)
    ]


def _pass_figures(records: Sequence[Record], pass_at: Sequence[int]) -> Record:
    """Figures of pass@k, means over problems; intervals cover other problems."""
    found: dict[str, list[bool]] = {}
    for record in records:
        found.setdefault(record["id"], []).append(record["passed"])
    row = {}
    for k in pass_at:
        each = np.array([pass_at_k(len(r), sum(r), k) for r in found.values()])
        share = float(each.mean())
        # Where all problems are alike, drawing them again says nothing.
        single = share in (0.0, 1.0) or all(len(results) == 1 for results in found.values())
        bounds = share_interval(share, len(each)) if single else interval(np.mean, each)[1:]
        row |= {f"pass@{k}": share, f"pass@{k}_low": bounds[0], f"pass@{k}_high": bounds[1]}
    broken = sum(record["status"] == "error" for record in records)
    return row | ({"programs_not_started": broken} if broken else {})


def _fenced(text: str) -> str:
    return f"```python\n{text}\n```"


def make_humaneval(path: str, choices: Choices, sandbox: Sandbox | None) -> Benchmark:
    problems, chat = limited(read_humaneval(path), choices), choices.chat

    def reference(i: int) -> str:
        problem = problems[i]
        return _fenced(problem.text + problem.solution) if chat else problem.solution

    def score(pairs: Sequence[tuple[int, str]]) -> list[Record]:
        return _tested(sandbox, [humaneval_program(problems[i], a, chat) for i, a in pairs])

    return Benchmark(
        ids=[problem.id for problem in problems],
        prompt=lambda i, before: Prompt(humaneval_prompt(problems[i], chat)),
        reference=reference,
        score=score,
        summary=lambda records: _pass_figures(records, choices.pass_at),
    )


def make_mbpp(path: str, choices: Choices, sandbox: Sandbox | None) -> Benchmark:
    problems, examples = read_mbpp(path, choices.whole)
    problems, chat = limited(problems, choices), choices.chat
    shots = solved_examples(examples, choices, 3, path)

    def score(pairs: Sequence[tuple[int, str]]) -> list[Record]:
        return _tested(sandbox, [mbpp_program(problems[i], a, chat) for i, a in pairs])

    return Benchmark(
        ids=[problem.id for problem in problems],
        prompt=lambda i, before: Prompt(mbpp_prompt(problems[i], shots, chat)),
        reference=lambda i: _fenced(problems[i].solution) if chat else problems[i].solution,
        score=score,
        summary=lambda records: _pass_figures(records, choices.pass_at),
    )
