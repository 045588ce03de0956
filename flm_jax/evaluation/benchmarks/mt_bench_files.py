"""Reads and writes questions, answers and reference answers of MT-Bench in FastChat's formats."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flm_jax.core.errors import UserError, require
from flm_jax.data.jsonl import read_records, text_field


class Question(NamedTuple):
    """A question with two turns."""

    id: int
    category: str
    turns: tuple[str, str]


def read_questions(path: str) -> list[Question]:
    """Reads questions in FastChat's format.

    Raises:
      UserError: no such file, or a bad line, whose number the message names.
    """
    found = []
    for where, record in read_records(path, "JSON lines of MT-Bench"):
        number, turns = record.get("question_id"), record.get("turns")
        require(
            type(number) is int
            and isinstance(turns, list)
            and len(turns) == 2
            and all(isinstance(turn, str) and turn for turn in turns),
            f"{where}: expected a number under 'question_id' and two texts under 'turns', got "
            f"{number!r} and {turns!r}.",
        )
        found.append(Question(number, text_field(record, "category", where), tuple(turns)))
    return found


def read_references(path: str) -> dict[int, tuple[str, ...]]:
    """Reads reference answers in FastChat's answer format, by question."""
    found = {}
    for where, record in read_records(path, "JSON lines of answers"):
        try:
            found[int(record["question_id"])] = tuple(record["choices"][0]["turns"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"{where}: expected 'question_id' and 'choices' with 'turns', got {sorted(record)}."
            ) from error
    return found


def answer_line(question: int, turns: Sequence[str], model: str, when: float) -> dict[str, Any]:
    """Returns a line of FastChat's answer files."""
    return {
        "question_id": question,
        "answer_id": f"{model}-{question}",
        "model_id": model,
        "choices": [{"index": 0, "turns": list(turns)}],
        "tstamp": when,
    }
