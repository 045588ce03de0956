"""GSM8K (arXiv 2110.14168): problems, prompts, and the two rules by which answers are read.

- strict: the first number after "####", or "###" as models are trained here, see `data.chat`;
- flexible: the last number of the answer, wherever it stands.

Both are compared as text, without thousands commas, dollar signs and a last full stop.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flm_jax.core.errors import UserError
from flm_jax.data.jsonl import read_records, text_field
from flm_jax.evaluation.benchmarks.base import Benchmark, Choices, Record, limited, solved_examples
from flm_jax.evaluation.benchmarks.sandbox import Sandbox
from flm_jax.inference.prompts import Prompt
from flm_jax.metrics.intervals import share_interval

_NUMBER = r"-?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)"
_STRICT = re.compile(rf"#{{3,4}} ?({_NUMBER})")
# A minus behind a digit or a bracket subtracts.
_FLEXIBLE = re.compile(rf"(?<![0-9.,)])({_NUMBER})|({_NUMBER[2:]})")
_NEXT = "\nQuestion:"


class WordProblem(NamedTuple):
    """A problem: its question, the reference answer as it stands, and the number in that."""

    question: str
    answer: str
    number: str


def read_gsm8k(path: str) -> list[WordProblem]:
    """Problems of a file in GSM8K's format: "question", and "answer" that ends in "#### N".

    Raises:
      UserError: no such file, or a bad line (its number).
    """
    found = []
    for where, record in read_records(path, "JSON lines of GSM8K"):
        question, answer = (text_field(record, name, where) for name in ("question", "answer"))
        number = strict(answer)
        if number is None:
            ends = answer[-40:]
            raise UserError(f"{where}: expected an answer that ends in '#### N', got {ends!r}.")
        found.append(WordProblem(question, answer, number))
    return found


def strict(answer: str) -> str | None:
    """The number marked as the result; None without one."""
    found = _STRICT.search(answer)
    return _plain(found[1]) if found else None


def flexible(answer: str) -> str | None:
    """The last number; None without one."""
    found = [one or other for one, other in _FLEXIBLE.findall(answer)]
    return _plain(found[-1]) if found else None


def _plain(number: str) -> str:
    return number.replace(",", "").replace("$", "")


def gsm8k_prompt(question: str, shots: Sequence[WordProblem], chat: bool) -> str:
    """What a model is given: the question as it is, or behind solved ones, to be continued."""
    if chat:
        return question
    shown = [f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots]
    return "".join(shown) + f"Question: {question}\nAnswer:"


def gsm8k_score(problem: WordProblem, answer: str, chat: bool) -> dict[str, object]:
    """Both rules; a continuation counts up to the next question that it asks itself."""
    if not chat:
        answer = answer.partition(_NEXT)[0]
    read = {"strict": strict(answer), "flexible": flexible(answer)}
    right = {f"{rule}_right": number == problem.number for rule, number in read.items()}
    return read | {"number": problem.number} | right


def make_gsm8k(path: str, choices: Choices, sandbox: Sandbox | None) -> Benchmark:
    del sandbox
    problems = limited(read_gsm8k(path), choices)
    examples = read_gsm8k(choices.examples) if choices.examples else []
    shots = solved_examples(examples, choices, 0, "--examples")

    def summary(records: Sequence[Record]) -> Record:
        row = {}
        for rule in ("strict", "flexible"):
            share = float(np.mean([record[f"{rule}_right"] for record in records]))
            row[f"{rule}_match"] = share
            low, high = share_interval(share, len(records))
            row |= {f"{rule}_match_low": low, f"{rule}_match_high": high}
        return row

    return Benchmark(
        ids=range(len(problems)),
        prompt=lambda i, before: Prompt(gsm8k_prompt(problems[i].question, shots, choices.chat)),
        reference=lambda i: problems[i].answer,
        score=lambda pairs: [gsm8k_score(problems[i], a, choices.chat) for i, a in pairs],
        summary=summary,
    )
