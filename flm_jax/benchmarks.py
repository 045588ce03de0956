"""The benchmarks by name: what is asked, how an answer is scored, what a table says."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from flm_jax.evals import code, gsm8k, mt_bench
from flm_jax.evals.bootstrap import interval
from flm_jax.evals.code_sandbox import Sandbox, run_all
from flm_jax.measure import share_interval
from flm_jax.types import require, unknown_name

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


def _shown(found: Sequence, choices: Choices, default: int, source: str) -> Sequence:
    count = default if choices.shots < 0 else choices.shots
    if choices.chat:
        require(choices.shots <= 0, f"got shots={choices.shots} for questions; expected 0.")
        return []
    require(
        count <= len(found),
        f"got shots={count}; {source} has {len(found)} solved problems to show.",
    )
    return found[:count]


def _limited(found: Sequence, choices: Choices) -> Sequence:
    require(choices.limit >= 0, f"got limit={choices.limit}; expected 0 (all) or more.")
    return found[: choices.limit] if choices.limit else found


def _gsm8k(path: str, choices: Choices, sandbox: Sandbox | None) -> Benchmark:
    del sandbox
    problems = _limited(gsm8k.read_gsm8k(path), choices)
    examples = gsm8k.read_gsm8k(choices.examples) if choices.examples else []
    shots = _shown(examples, choices, 0, "--examples")

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
        prompt=lambda i, before: gsm8k.prompt(problems[i].question, shots, choices.chat),
        reference=lambda i: problems[i].answer,
        score=lambda pairs: [gsm8k.score(problems[i], a, choices.chat) for i, a in pairs],
        summary=summary,
    )


def _mt_bench(path: str, choices: Choices, sandbox: Sandbox | None) -> Benchmark:
    del sandbox
    questions = _limited(mt_bench.read_questions(path), choices)
    return Benchmark(
        ids=[question.id for question in questions],
        prompt=lambda i, before: mt_bench.prompt(questions[i], before, choices.chat),
        reference=None,
        score=lambda pairs: [{"category": questions[i].category} for i, _ in pairs],
        summary=lambda records: {},
        turns=2,
    )


def _tested(sandbox: Sandbox, programs: Sequence[str]) -> list[Record]:
    return [
        {
            "passed": outcome.status == "passed",
            "status": outcome.status,
            "detail": outcome.detail,
            "output": outcome.output[:_OUTPUT_KEPT],
            "seconds": round(outcome.seconds, 3),
        }
        for outcome in run_all(sandbox, programs)
    ]


def _pass_figures(records: Sequence[Record], pass_at: Sequence[int]) -> Record:
    """pass@k, its mean over problems; intervals cover other problems."""
    found: dict[str, list[bool]] = {}
    for record in records:
        found.setdefault(record["id"], []).append(record["passed"])
    row = {}
    for k in pass_at:
        each = np.array([code.pass_at_k(len(r), sum(r), k) for r in found.values()])
        share = float(each.mean())
        # Where all problems are alike, drawing them again says nothing.
        single = share in (0.0, 1.0) or all(len(results) == 1 for results in found.values())
        bounds = share_interval(share, len(each)) if single else interval(np.mean, each)[1:]
        row |= {f"pass@{k}": share, f"pass@{k}_low": bounds[0], f"pass@{k}_high": bounds[1]}
    broken = sum(record["status"] == "error" for record in records)
    return row | ({"programs_not_started": broken} if broken else {})


def _fenced(text: str) -> str:
    return f"```python\n{text}\n```"


def _humaneval(path: str, choices: Choices, sandbox: Sandbox | None) -> Benchmark:
    problems, chat = _limited(code.read_humaneval(path), choices), choices.chat

    def reference(i: int) -> str:
        problem = problems[i]
        return _fenced(problem.text + problem.solution) if chat else problem.solution

    def score(pairs: Sequence[tuple[int, str]]) -> list[Record]:
        return _tested(sandbox, [code.humaneval_program(problems[i], a, chat) for i, a in pairs])

    return Benchmark(
        ids=[problem.id for problem in problems],
        prompt=lambda i, before: code.humaneval_prompt(problems[i], chat),
        reference=reference,
        score=score,
        summary=lambda records: _pass_figures(records, choices.pass_at),
    )


def _mbpp(path: str, choices: Choices, sandbox: Sandbox | None) -> Benchmark:
    problems, examples = code.read_mbpp(path, choices.whole)
    problems, chat = _limited(problems, choices), choices.chat
    shots = _shown(examples, choices, 3, path)

    def score(pairs: Sequence[tuple[int, str]]) -> list[Record]:
        return _tested(sandbox, [code.mbpp_program(problems[i], a, chat) for i, a in pairs])

    return Benchmark(
        ids=[problem.id for problem in problems],
        prompt=lambda i, before: code.mbpp_prompt(problems[i], shots, chat),
        reference=lambda i: _fenced(problems[i].solution) if chat else problems[i].solution,
        score=score,
        summary=lambda records: _pass_figures(records, choices.pass_at),
    )


BENCHMARKS = {"gsm8k": _gsm8k, "mt_bench": _mt_bench, "humaneval": _humaneval, "mbpp": _mbpp}
WITH_PROGRAMS = ("humaneval", "mbpp")


def make_benchmark(
    name: str, path: str, choices: Choices, sandbox: Sandbox | None = None
) -> Benchmark:
    """A benchmark by name.

    Args:
      path: its data file.
      sandbox: where programs run; of `WITH_PROGRAMS`.

    Raises:
      UserError: an unknown name, no such file, a bad line of it, impossible choices.
    """
    if name not in BENCHMARKS:
        raise unknown_name("task", name, BENCHMARKS)
    require(sandbox is not None or name not in WITH_PROGRAMS, f"{name} runs programs in a sandbox.")
    return BENCHMARKS[name](path, choices, sandbox)
