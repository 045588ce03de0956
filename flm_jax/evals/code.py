"""HumanEval and MBPP: problems, prompts, programs made of answers, unbiased pass@k.

HumanEval: arXiv 2107.03374. A model continues a function's header and docstring; its text is cut
where the function ends. MBPP: arXiv 2108.07732. A model is shown three solved tasks, each with its
tests, and writes code up to [DONE]. Asked as a question instead (`chat`), it may answer in words
with a fenced block of code.
"""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from flm_jax.data.records import read_records, text_field
from flm_jax.types import require

_AFTER_FUNCTION = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")  # of the HumanEval paper
_DONE = "[DONE]"
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_SHOTS = (2, 3, 4)  # tasks of MBPP that are shown, in the paper's split for prompts
_TEST_SPLIT = range(11, 511)


class Problem(NamedTuple):
    """A programming problem.

    Attributes:
      id: of the data file.
      text: HumanEval: header and docstring of the function; MBPP: the task in words.
      entry: HumanEval: name of the function; "" in MBPP.
      tests: Python statements; they fail by an exception.
      setup: MBPP: statements before the tests.
      solution: the reference: HumanEval the function's body, MBPP a whole program.
    """

    id: str
    text: str
    entry: str
    tests: tuple[str, ...]
    setup: str
    solution: str


def read_humaneval(path: str) -> list[Problem]:
    """Problems of a file in HumanEval's format (.jsonl or .jsonl.gz).

    Raises:
      UserError: no such file, or a bad line (its number).
    """
    found = []
    for where, record in read_records(path, "JSON lines of HumanEval"):
        names = ("task_id", "prompt", "entry_point", "test", "canonical_solution")
        task, prompt, entry, test, solution = (text_field(record, name, where) for name in names)
        found.append(Problem(task, prompt, entry, (test, f"check({entry})"), "", solution))
    return found


def read_mbpp(path: str, whole: bool = False) -> tuple[list[Problem], list[Problem]]:
    """Problems of a file in MBPP's format: the test split, or all where no number is in it.

    Args:
      path: of the file.
      whole: all problems.

    Returns:
      The problems, and those to show in a prompt.

    Raises:
      UserError: no such file, or a bad line (its number).
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
        text, code = (text_field(record, n, where).replace("\r", "") for n in ("text", "code"))
        setup = str(record.get("test_setup_code") or "")
        found[number] = Problem(f"MBPP/{number}", text, "", tuple(tests), setup, code)
    problems = [problem for number, problem in found.items() if whole or number in _TEST_SPLIT]
    return problems or list(found.values()), [found[n] for n in _SHOTS if n in found]


def humaneval_prompt(problem: Problem, chat: bool) -> str:
    """What a model is given."""
    if not chat:
        return problem.text
    return (
        f"Complete this Python function. Answer with the whole function, in a code block.\n"
        f"```python\n{problem.text.rstrip()}\n```"
    )


def mbpp_prompt(problem: Problem, shots: Sequence[Problem], chat: bool) -> str:
    """What a model is given: the paper's prompt, after solved ones; as a question without them."""
    tests = "\n".join(problem.tests)
    if chat:
        return (
            f"{problem.text.strip()}\nAnswer with Python code, in a code block, that passes these "
            f"tests:\n{tests}"
        )
    shown = [f"{_task(shot)}{shot.solution}\n{_DONE}\n\n" for shot in shots]
    return "".join(shown) + _task(problem)


def _task(problem: Problem) -> str:
    tests = "\n".join(problem.tests)
    return (
        f"You are an expert Python programmer, and here is your task: {problem.text.strip()} Your "
        f"code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def code_block(answer: str) -> str | None:
    """The longest fenced block of an answer; None without one. An open last fence is a block."""
    blocks = _FENCE.findall(answer)
    return max(blocks, key=len) if blocks else None


def humaneval_program(problem: Problem, answer: str, chat: bool) -> str:
    """The program that tests an answer.

    A continuation follows the header and is cut where another top-level statement begins. Of a
    chat's answer the fenced block counts, or all of it; one that defines the function takes the
    place of header and body, behind what stands before the header, such as imports.
    """
    tests = "\n".join(problem.tests)
    if not chat:
        places = [place for stop in _AFTER_FUNCTION if (place := answer.find(stop)) >= 0]
        return f"{problem.text}{answer[: min(places, default=None)]}\n{tests}\n"
    block = code_block(answer)
    code = answer if block is None else block
    head = re.search(rf"^def {re.escape(problem.entry)}\b", code, re.MULTILINE)
    if not head:
        return f"{problem.text}{code}\n{tests}\n"
    before = problem.text[: max(problem.text.rfind(f"def {problem.entry}"), 0)]
    return f"{before}\n{code}\n{tests}\n"


def mbpp_program(problem: Problem, answer: str, chat: bool) -> str:
    """The program that tests an answer: its code up to [DONE], or its fenced block."""
    code = answer.partition(_DONE)[0]
    if chat and (block := code_block(code)) is not None:
        code = block
    return "\n".join([code.replace("\r", ""), problem.setup, *problem.tests]) + "\n"


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased chance that one of k answers is right: 1 - C(n-c, k) / C(n, k).

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
    return float(1 - Fraction(math.comb(samples - right, k), math.comb(samples, k)))
