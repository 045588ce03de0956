"""What a benchmark is: prompts, scores and a summary."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flm_jax.core.errors import require

Record = dict[str, Any]
_OUTPUT_KEPT = 1000  # characters


@dataclasses.dataclass(frozen=True)
class Choices:
    """What can be chosen of a benchmark.

    Attributes:
      chat: asks questions; else texts to continue.
      shots: solved problems before each of GSM8K and MBPP; -1 for 3 of MBPP, and else none. None
        before questions.
      examples: file of those of GSM8K.
      pass_at: the k of pass@k.
      whole: MBPP: all problems, not the test split alone.
      limit: the first so many problems; 0 for all.
    """

    chat: bool = False
    shots: int = -1
    examples: str = ""
    pass_at: tuple[int, ...] = (1,)
    whole: bool = False
    limit: int = 0


class Benchmark(NamedTuple):
    """Problems and what is done with their answers.

    Attributes:
      ids: of the problems.
      prompt: (problem, answers in earlier turns) -> text to give.
      reference: problem -> the right answer; None where there is none.
      score: [(problem, answer)] -> fields of their records.
      summary: all records -> figures, with bounds NAME_low and NAME_high of 95% intervals.
      turns: answers to each problem.
    """

    ids: Sequence[str | int]
    prompt: Callable[[int, Sequence[str]], str]
    reference: Callable[[int], str] | None
    score: Callable[[Sequence[tuple[int, str]]], list[Record]]
    summary: Callable[[Sequence[Record]], Record]
    turns: int = 1


def solved_examples(found: Sequence, choices: Choices, default: int, source: str) -> Sequence:
    count = default if choices.shots < 0 else choices.shots
    if choices.chat:
        require(choices.shots <= 0, f"got shots={choices.shots} for questions; expected 0.")
        return []
    require(
        count <= len(found),
        f"got shots={count}; {source} has {len(found)} solved problems to show.",
    )
    return found[:count]


def limited(found: Sequence, choices: Choices) -> Sequence:
    require(choices.limit >= 0, f"got limit={choices.limit}; expected 0 (all) or more.")
    return found[: choices.limit] if choices.limit else found
