"""GSM8K (arXiv 2110.14168): problems, prompts, and scores by the rules of `gsm8k_numbers`."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from flm_jax.core.errors import UserError
from flm_jax.data.jsonl import read_records, text_field
from flm_jax.evaluation.benchmarks.base import Benchmark, Choices, Record, limited, solved_examples
from flm_jax.evaluation.benchmarks.gsm8k_numbers import (
    flexible,
    harness_text,
    marked_number,
    number,
    reference_flexible,
    reference_gold,
    reference_strict,
    strict,
)
from flm_jax.evaluation.benchmarks.sandbox import Sandbox
from flm_jax.inference.prompts import Prompt
from flm_jax.metrics.intervals import share_interval

RULES = ("number", "strict", "flexible", "reference", "reference_strict")  # as tables show them
_NEXT = "\nQuestion:"


class WordProblem(NamedTuple):
    """A problem: its question, its reference answer as text, and the value of that."""

    question: str
    answer: str
    number: Fraction


def read_gsm8k(path: str) -> list[WordProblem]:
    """Reads problems in GSM8K's format: "question", and "answer" that ends in "#### N".

    Raises:
      UserError: no such file, or a bad line, whose number the message names.
    """
    found = []
    for where, record in read_records(path, "JSON lines of GSM8K"):
        question, answer = (text_field(record, name, where) for name in ("question", "answer"))
        value = marked_number(answer)
        if value is None:
            ends = answer[-40:]
            raise UserError(f"{where}: expected an answer that ends in '#### N', got {ends!r}.")
        found.append(WordProblem(question, answer, value))
    return found


def gsm8k_prompt(question: str, shots: Sequence[WordProblem], choices: Choices) -> Prompt:
    """Returns the prompt: the question after solved ones, asked as chat or to be continued.

    Solved problems before a question are earlier turns, each followed by an empty line. The style
    "plain" ends in a space, as in the reference; without a style a continued text does not.
    """
    if choices.chat:
        before = [turn for shot in shots for turn in (shot.question, f"{shot.answer}\n")]
        return Prompt(question, before=tuple(before))
    shown = [f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots]
    last = " " if choices.prompt_style == "plain" else ""
    return Prompt("".join(shown) + f"Question: {question}\nAnswer:{last}")


def gsm8k_score(problem: WordProblem, answer: str, chat: bool) -> Record:
    """Scores an answer by all rules except the reference's: numbers, and whether they are correct.

    A continuation counts up to the next question that it generates.
    """
    if not chat:
        answer = answer.partition(_NEXT)[0]
    value, right = number(answer), harness_text(problem.answer)
    read = {"strict": strict(answer), "flexible": flexible(answer)}
    found: Record = {"number": None if value is None else str(value)} | read
    found |= {"gold": str(problem.number), "number_right": value == problem.number}
    same = lambda text: text is not None and harness_text(text) == right
    return found | {f"{rule}_right": same(text) for rule, text in read.items()}


def reference_score(problem: WordProblem, written: str) -> Record:
    """Scores all generated text by the reference's rules: numbers, and whether they are correct.

    Like the reference's code, they read beyond the end of an answer.
    """
    right = reference_gold(problem.answer)
    read = {"reference": reference_flexible, "reference_strict": reference_strict}
    found: Record = {name: rule(written) for name, rule in read.items()}
    return found | {f"{name}_right": found[name] == right for name in read}


def summary(records: Sequence[Record]) -> Record:
    """Fraction of correct answers by each rule, with 95% intervals; this library's own first."""
    row: Record = {}
    for rule in RULES:
        share = float(np.mean([record[f"{rule}_right"] for record in records]))
        low, high = share_interval(share, len(records))
        name = f"{rule}_match"
        row |= {name: share, f"{name}_low": low, f"{name}_high": high}
    return row


def make_gsm8k(path: str, choices: Choices, sandbox: Sandbox | None) -> Benchmark:
    """Builds GSM8K from its published JSON lines."""
    del sandbox
    problems = limited(read_gsm8k(path), choices)
    examples = read_gsm8k(choices.examples) if choices.examples else []
    shots = solved_examples(examples, choices, 0, "--examples", asked=True)
    return Benchmark(
        ids=range(len(problems)),
        prompt=lambda i, before: gsm8k_prompt(problems[i].question, shots, choices),
        reference=lambda i: problems[i].answer,
        score=lambda pairs: [gsm8k_score(problems[i], a, choices.chat) for i, a in pairs],
        score_uncut=lambda pairs: [reference_score(problems[i], text) for i, text in pairs],
        summary=summary,
    )
