"""GSM8K (arXiv 2110.14168): problems, prompts, and the two rules by which answers are read.

- strict: the first number after "####", or "###" as models are trained here, see `data.chat`;
- flexible: the last number of the answer, wherever it stands.

Both are compared as text, without thousands commas, dollar signs and a last full stop.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from flm_jax.data.records import read_records, text_field
from flm_jax.types import UserError

_NUMBER = r"-?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)"
_STRICT = re.compile(rf"#{{3,4}} ?({_NUMBER})")
# A minus behind a digit or a bracket subtracts.
_FLEXIBLE = re.compile(rf"(?<![0-9.,)])({_NUMBER})|({_NUMBER[2:]})")
_NEXT = "\nQuestion:"


class Problem(NamedTuple):
    """A problem: its question, the reference answer as it stands, and the number in that."""

    question: str
    answer: str
    number: str


def read_gsm8k(path: str) -> list[Problem]:
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
        found.append(Problem(question, answer, number))
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


def prompt(question: str, shots: Sequence[Problem], chat: bool) -> str:
    """What a model is given: the question as it is, or behind solved ones, to be continued."""
    if chat:
        return question
    shown = [f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots]
    return "".join(shown) + f"Question: {question}\nAnswer:"


def score(problem: Problem, answer: str, chat: bool) -> dict[str, object]:
    """Both rules; a continuation counts up to the next question that it asks itself."""
    if not chat:
        answer = answer.partition(_NEXT)[0]
    read = {"strict": strict(answer), "flexible": flexible(answer)}
    right = {f"{rule}_right": number == problem.number for rule, number in read.items()}
    return read | {"number": problem.number} | right
