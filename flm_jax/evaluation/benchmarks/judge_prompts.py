"""Prompts of a judge of MT-Bench, and the grade that it gives (arXiv 2306.05685).

There are four prompts by FastChat's names: for the first turn and for the second, each alone and
with a reference answer. The published ones are read from FastChat's file; those here follow the
same protocol in this library's own words.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flm_jax.core.errors import UserError, require
from flm_jax.data.jsonl import read_records, text_field
from flm_jax.evaluation.benchmarks.mt_bench_files import Question

_RATING = re.compile(r"\[\[ *([0-9]+(?:\.[0-9]+)?) *\]\]")
_WITH_REFERENCE = ("math", "reasoning", "coding")  # categories judged beside a reference answer
_PLAIN, _BESIDE = ((name, f"{name}-multi-turn") for name in ("single-v1", "single-math-v1"))
# Beginnings of the SHA-256 of the published texts: system, a zero byte, template.
_PUBLISHED = {
    "single-v1": "7d276fe1d4b3f18f",
    "single-math-v1": "226191a3df0fe7a9",
    "single-v1-multi-turn": "a91a5b4266b4e377",
    "single-math-v1-multi-turn": "572e584361120697",
}

_SYSTEM = "You grade the answers of a chat assistant, as an expert who takes no side."
_GENERAL = (
    "Weigh whether the answer is helpful, relevant, accurate, deep, creative and detailed enough; "
    "its length alone is no merit."
)
_COMPARED = (
    "Weigh whether the answer is right and helpful. A reference answer is given: first compare the "
    "two, and say which mistakes the answer makes."
)
_SECOND = "The conversation has two turns; grade the second answer, in the light of the first."
_FORM = (
    "Explain your grade in a few sentences, then give it as a number from 1 (worst) to 10 (best), "
    "in double brackets, as in: Grade: [[5]]."
)
_ONE_TURN = "Question:\n{question}\n\n"
_TWO_TURNS = (
    "First question:\n{question_1}\n\nFirst answer:\n{answer_1}\n\n"
    "Second question:\n{question_2}\n\n"
)


class JudgePrompt(NamedTuple):
    """Prompt of a judge; the template has the fields question, answer or question_1, ..."""

    system: str
    template: str


def _own(*parts: str) -> JudgePrompt:
    return JudgePrompt(_SYSTEM, "".join(parts))


PROMPTS: Mapping[str, JudgePrompt] = {
    "single-v1": _own(f"{_GENERAL} {_FORM}\n\n", _ONE_TURN, "Answer to grade:\n{answer}"),
    "single-v1-multi-turn": _own(
        f"{_SECOND} {_GENERAL} {_FORM}\n\n", _TWO_TURNS, "Answer to grade:\n{answer_2}"
    ),
    "single-math-v1": _own(
        f"{_COMPARED} {_FORM}\n\n",
        _ONE_TURN,
        "Reference answer:\n{ref_answer_1}\n\nAnswer to grade:\n{answer}",
    ),
    "single-math-v1-multi-turn": _own(
        f"{_SECOND} {_COMPARED} {_FORM}\n\n",
        _TWO_TURNS,
        "Reference answers:\n{ref_answer_1}\n\n{ref_answer_2}\n\nAnswer to grade:\n{answer_2}",
    ),
}


def read_prompts(path: str) -> dict[str, JudgePrompt]:
    """Reads judge prompts in FastChat's format: name, system_prompt, prompt_template.

    Raises:
      UserError: no such file, a bad line, or one of the two required prompts is missing.
    """
    found = {}
    for where, record in read_records(path, "JSON lines of judge prompts"):
        names = ("name", "system_prompt", "prompt_template")
        name, system, template = (text_field(record, key, where) for key in names)
        found[name] = JudgePrompt(system, template)
    missing = [name for name in _PLAIN if name not in found]
    require(not missing, f"{path} has no prompt {' and '.join(missing)}; it has {sorted(found)}.")
    return found


def whose(prompts: Mapping[str, JudgePrompt]) -> str:
    """Origin of prompts: "published", "own" for this library's, or "other"."""
    if all(prompts.get(name) == own for name, own in PROMPTS.items()):
        return "own"
    digest = lambda one: hashlib.sha256(f"{one.system}\0{one.template}".encode()).hexdigest()
    known = lambda name, half: name in prompts and digest(prompts[name]).startswith(half)
    return "published" if all(known(*pair) for pair in _PUBLISHED.items()) else "other"


def judge_prompt(
    question: Question,
    answers: Sequence[str],
    turn: int,
    prompts: Mapping[str, JudgePrompt] = PROMPTS,
    references: Mapping[int, Sequence[str]] | None = None,
) -> tuple[str, str, str]:
    """Returns (name, system, user) of the prompt that rates an answer.

    Args:
      answers: answers of the model, one for each turn.
      turn: index of the turn, 0 or 1.
      prompts: prompts by FastChat's names.
      references: reference answers by question; used for mathematics, reasoning and coding if
        `prompts` has prompts for them.

    Raises:
      UserError: a template with unknown fields.
    """
    own = (references or {}).get(question.id)
    kinds = _PLAIN
    if own and question.category in _WITH_REFERENCE and _BESIDE[turn] in prompts:
        kinds = _BESIDE
    fields = {"question": question.turns[0], "answer": answers[0]}
    for i in range(2):
        fields[f"question_{i + 1}"] = question.turns[i]
        fields[f"answer_{i + 1}"] = answers[i] if i < len(answers) else ""
        fields[f"ref_answer_{i + 1}"] = own[i] if own and i < len(own) else ""
    found = prompts[kinds[turn]]
    try:
        return kinds[turn], found.system, found.template.format(**fields)
    except (LookupError, ValueError, AttributeError, MemoryError) as error:
        raise UserError(
            f"judge prompt {kinds[turn]}: {error!r}; expected the fields {', '.join(fields)}."
        ) from error


def rating(text: str) -> float | None:
    """Last grade in a judge's answer, [[1]] to [[10]]; None without one."""
    found = _RATING.findall(text)
    return float(found[-1]) if found and 1 <= float(found[-1]) <= 10 else None
