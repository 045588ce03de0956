"""What a benchmark is: prompts, scores and a summary."""

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
    """What can be chosen of a benchmark.

    Attributes:
      chat: asks questions; else texts to continue.
      prompt_style: form of the prompts, a name in the benchmark's styles; "" for the one that
        `chat` says.
      shots: solved problems before each of GSM8K and MBPP; -1 for 3 of MBPP, and else none. None
        before questions of MBPP.
      examples: file of those of GSM8K.
      pass_at: the k of pass@k.
      whole: MBPP: all problems, not the test split alone.
      limit: number of problems, from the first; 0 for all.
      first_turn: MT-Bench: its first turn alone.
      stop_strings: texts of MT-Bench at the first of which an answer ends.
      judge_model: name of the judge; "" for the environment's.
      judge_prompts: file of the prompts that a judge is given; "" for the library's own.
      judge_references: file of reference answers that a judge is shown; "" for none.
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
    """Problems and what is done with their answers.

    Attributes:
      ids: of the problems.
      prompt: (problem, answers in earlier turns) -> what to give.
      reference: problem -> the right answer; None where there is none.
      score: [(problem, answer)] -> fields of their records.
      summary: all records -> figures, with bounds NAME_low and NAME_high of 95% intervals.
      turns: answers to each problem.
      finish: (all records, the model's name, their folder) -> further figures; called once all
        answers are there, for work such as judging them.
      score_uncut: as `score`, of all that was written, also behind the end of an answer; None where
        nothing reads that.
      cleaned: text of an answer -> what is kept of it.
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
    """The solved problems that stand before each problem.

    Args:
      found: all there are.
      choices: how many are wanted.
      default: how many where choices.shots is -1.
      source: where they come from, for messages.
      asked: whether they may stand before questions.

    Raises:
      UserError: more than there are, or any before questions that have none.
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
    """The first choices.limit problems; all where that is 0."""
    require(choices.limit >= 0, f"got limit={choices.limit}; expected 0 (all) or more.")
    return found[: choices.limit] if choices.limit else found
