"""The definition of a benchmark: prompts, scores and a summary."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flm_jax.core.errors import require
from flm_jax.inference.prompts import Prompt

Record = dict[str, Any]
_OUTPUT_KEPT = 1000  # characters
# Where an answer of MT-Bench ends: what a model writes that goes on with both parts.
STOP_STRINGS = ("</s>", "\nUSER:", "\nASSISTANT:", "\nUser:", "\nAssistant:")


@dataclasses.dataclass(frozen=True)
class Choices:
    """Options of a benchmark.

    Attributes:
      chat: whether problems are asked as questions; else they are texts to continue.
      prompt_style: form of the prompts, a name in the benchmark's styles; "" for the one that
        `chat` implies.
      shots: number of solved problems before each problem of GSM8K and MBPP; -1 for 3 in MBPP, and
        0 otherwise. Questions of MBPP have none.
      examples: file of the solved problems of GSM8K.
      pass_at: values of k for pass@k.
      whole: whether MBPP has all problems, not the test split alone.
      limit: number of problems, from the first; 0 for all.
      first_turn: whether MT-Bench has its first turn alone.
      stop_strings: strings at the first of which an answer of MT-Bench ends.
      judge_model: name of the judge; "" for the environment's.
      judge_prompts: file of the judge's prompts; "" for the library's own.
      judge_references: file of reference answers for the judge; "" for none.
    """

    chat: bool = False
    prompt_style: str = ""
    shots: int = -1
    examples: str = ""
    pass_at: tuple[int, ...] = (1,)
    whole: bool = False
    limit: int = 0
    first_turn: bool = False
    stop_strings: tuple[str, ...] = STOP_STRINGS
    judge_model: str = ""
    judge_prompts: str = ""
    judge_references: str = ""


class Benchmark(NamedTuple):
    """Problems of a benchmark, and the processing of their answers.

    Attributes:
      ids: identifiers of the problems.
      prompt: function from (problem, answers in earlier turns) to the prompt.
      reference: function from the problem to the correct answer; None if there is none.
      score: function from [(problem, answer)] to the fields of their records.
      summary: function from all records to figures, with bounds NAME_low and NAME_high of 95%
        intervals.
      turns: number of answers to each problem.
      finish: function from (all records, the model's name, their folder) to further figures; called
        once when all answers are complete, for work such as judging them.
      score_uncut: the same as `score` for all generated text, including what follows the end of an
        answer; None if it is not used.
      cleaned: function from the text of an answer to the text that is kept.
    """

    ids: Sequence[str | int]
    prompt: Callable[[int, Sequence[str]], Prompt]
    reference: Callable[[int], str] | None
    score: Callable[[Sequence[tuple[int, str]]], list[Record]]
    summary: Callable[[Sequence[Record]], Record]
    turns: int = 1
    finish: Callable[[Sequence[Record], str, Path], Record] = lambda records, model, folder: {}
    score_uncut: Callable[[Sequence[tuple[int, str]]], list[Record]] | None = None
    cleaned: Callable[[str], str] = lambda text: text


def solved_examples(
    found: Sequence, choices: Choices, default: int, source: str, asked: bool = False
) -> Sequence:
    """Returns the solved problems that precede each problem.

    Args:
      found: all available ones.
      choices: options, with the wanted number.
      default: number if choices.shots is -1.
      source: origin of the examples, for messages.
      asked: whether examples may precede questions.

    Raises:
      UserError: more than are available, or any before questions that take none.
    """
    count = default if choices.shots < 0 else choices.shots
    if choices.chat and not asked:
        require(choices.shots <= 0, f"got shots={choices.shots} for questions; expected 0.")
        return []
    require(
        count <= len(found),
        f"got shots={count}; {source} has {len(found)} solved problems to show.",
    )
    return found[:count]


def limited(found: Sequence, choices: Choices) -> Sequence:
    """Returns the first choices.limit problems, or all if it is 0."""
    require(choices.limit >= 0, f"got limit={choices.limit}; expected 0 (all) or more.")
    return found[: choices.limit] if choices.limit else found
