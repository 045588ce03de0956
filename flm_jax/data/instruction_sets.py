"""Questions and answers of instruction data sets, read off their published files.

Each of these records is one exchange; of a conversation the first two turns are taken. Records
that hold none (an empty text, a conversation that begins otherwise) are left out, and counted.

| set | fields |
|---|---|
| any | "prompt" and "response", or "prompt" and "completion" |
| GSM8K | "question" and "answer", whose last line is "#### N" |
| GSM8K-Aug-NL | "question", "cot" (or "steps") and "answer" |
| MetaMathQA | "query" and "response", which ends in "The answer is: N" |
| NuminaMath | "problem" and "solution", whose result is in \\boxed{} |
| Alpaca, code sets of its form | "instruction", "input" (may be empty) and "output" |
| Tulu and others | "messages" of "role" and "content" |
| ShareGPT | "conversations" of "from" and "value" |

Answers of the mathematical sets end in a line "### N". The names of fields come from the data
sets' public descriptions and of code that reads them (of GSM8K-Aug-NL as zen-E/GSM8k-Aug-NL has it,
of NuminaMath as AI-MO/NuminaMath-CoT); the files themselves were not at hand.
"""

import logging
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epath

from flm_jax.core.errors import UserError, require
from flm_jax.core.paths import expanded
from flm_jax.data.corpus.parquet import records as parquet_records
from flm_jax.data.jsonl import read_records
from flm_jax.data.text import tidy

_NOTES = re.compile(r"<<[^>]*>>")
_METAMATH = re.compile(r"\n*(?:####\s*[^\n]*\n)?The answer is:\s*(.+?)\s*$", re.DOTALL)
_EXPECTED = "JSON lines of questions and answers"
_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")  # of a folder's files
_ASKS, _ANSWERS = ("user", "human"), ("assistant", "gpt")


class Exchange(NamedTuple):
    """A question and its answer; `where` is its place, for messages."""

    prompt: str
    response: str
    where: str = ""


def read_exchanges(path: str) -> list[Exchange]:
    """Reads the exchange of every record of a file: JSON lines or array (also .gz), or parquet.

    Args:
      path: path of the file, or of a folder of such files, which are read in the order of their
        names.

    Raises:
      UserError: no such file, no records, or one of no form above; the message names its place.
    """
    found = [record for file in _files(path) for record in _records(file)]
    exchanges = [exchange(record, where) for where, record in found]
    kept = [one for one in exchanges if one is not None]
    if len(kept) < len(found):
        said = (
            f"{path}: {len(found) - len(kept)} of {len(found)} records hold no question with its "
            "answer (an empty text, or a conversation that begins otherwise)"
        )
        require(bool(kept), f"{said}; expected {_EXPECTED}.")
        logging.warning("%s, and are left out", said)
    return kept


def _files(path: str) -> list[str]:
    """The file, or the files of a folder."""
    folder = epath.Path(expanded(str(path)))
    if not folder.is_dir():
        return [str(path)]
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(_ENDINGS))
    require(bool(names), f"{path} has no file; expected files ending in {', '.join(_ENDINGS)}.")
    return [f"{path}/{name}" for name in names]


def _records(path: str) -> list[tuple[str, dict[str, Any]]]:
    if not path.endswith(".parquet"):
        return read_records(path, _EXPECTED)
    found = list(parquet_records(path))
    require(bool(found), f"{path} has no row; expected questions and answers.")
    return found


def exchange(record: dict[str, Any], where: str) -> Exchange | None:
    """Returns the exchange of one record, or None for a record without one.

    Args:
      where: place of the record, for messages.

    Raises:
      UserError: a record of unknown form, or without its texts.
    """
    for fields, read in _FORMS:
        if all(field in record for field in fields):
            prompt, response = (tidy(text) for text in read(record, where))
            return Exchange(prompt, response, where) if prompt and response else None
    names = "; ".join(" with ".join(map(repr, fields)) for fields, _ in _FORMS)
    raise UserError(f"{where}: expected one of {names}, got {sorted(record)}.")


def mathematical(reasoning: str, result: str) -> str:
    """Returns an answer whose last line is "### result"."""
    return f"{reasoning}\n### {result}" if reasoning else f"### {result}"


def _texts(record: dict[str, Any], where: str, *fields: str) -> list[str]:
    values = [record[field] for field in fields]
    good = [isinstance(value, str) for value in values]
    if not all(good):
        bad = good.index(False)
        names = " and ".join(map(repr, fields))
        raise UserError(f"{where}: {names} must be text, got {values[bad]!r} for {fields[bad]!r}.")
    return values


def _pair(first: str, second: str) -> Callable[..., list[str]]:
    return lambda record, where: _texts(record, where, first, second)


def _gsm8k(record: dict[str, Any], where: str) -> list[str]:
    question, answer = _texts(record, where, "question", "answer")
    return [question, _NOTES.sub("", answer).replace("\n#### ", "\n### ")]


def _reasoned(field: str) -> Callable[..., list[str]]:
    def read(record: dict[str, Any], where: str) -> list[str]:
        steps = record[field]
        if isinstance(steps, list):
            record = record | {field: " ".join(map(str, steps))}
        answer = record["answer"]
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            record = record | {"answer": repr(answer).removesuffix(".0")}
        question, reasoning, answer = _texts(record, where, "question", field, "answer")
        result = answer.rpartition("####")[2].strip()
        return [question, mathematical(_NOTES.sub("", reasoning).strip(), result)]

    return read


def _metamath(record: dict[str, Any], where: str) -> list[str]:
    query, response = _texts(record, where, "query", "response")
    found = _METAMATH.search(response)
    return [query, mathematical(response[: found.start()], found[1]) if found else response]


def _numina(record: dict[str, Any], where: str) -> list[str]:
    problem, solution = _texts(record, where, "problem", "solution")
    result = boxed(solution)
    return [problem, mathematical(solution, result) if result else solution]


def boxed(text: str) -> str:
    """What the last \\boxed{...} of a text holds; empty without one that is closed."""
    start = text.rfind("\\boxed{")
    depth, inside = 0, text[start + len("\\boxed{") :] if start >= 0 else ""
    for i, sign in enumerate(inside):
        depth += (sign == "{") - (sign == "}")
        if depth < 0:
            return inside[:i]
    return ""


def _alpaca(record: dict[str, Any], where: str) -> list[str]:
    instruction, output = _texts(record, where, "instruction", "output")
    more = record.get("input") or ""
    return [f"{instruction}\n\n{more}" if more else instruction, output]


def _conversation(field: str, role: str, content: str) -> Callable[..., list[str]]:
    def read(record: dict[str, Any], where: str) -> list[str]:
        turns = record[field]
        good = isinstance(turns, list) and all(
            isinstance(turn, dict) and isinstance(turn.get(content), str) for turn in turns
        )
        require(
            good,
            f"{where}: expected {field!r} to be a list of objects with {role!r} and {content!r}, "
            f"got {str(turns)[:60]}.",
        )
        said = [turn for turn in turns if turn.get(role) != "system"]
        if len(said) < 2 or said[0].get(role) not in _ASKS or said[1].get(role) not in _ANSWERS:
            return ["", ""]
        return [said[0][content], said[1][content]]

    return read


# The first form whose fields a record has is taken: those of more fields come first.
_FORMS: tuple[tuple[tuple[str, ...], Callable[..., list[str]]], ...] = (
    (("prompt", "response"), _pair("prompt", "response")),
    (("question", "cot", "answer"), _reasoned("cot")),
    (("question", "steps", "answer"), _reasoned("steps")),
    (("question", "answer"), _gsm8k),
    (("query", "response"), _metamath),
    (("problem", "solution"), _numina),
    (("instruction", "output"), _alpaca),
    (("prompt", "completion"), _pair("prompt", "completion")),
    (("messages",), _conversation("messages", "role", "content")),
    (("conversations",), _conversation("conversations", "from", "value")),
)
