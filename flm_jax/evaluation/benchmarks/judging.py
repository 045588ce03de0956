"""Grades the answers of MT-Bench by a judge model, each once, from 1 to 10."""

import concurrent.futures
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flm_jax.core.errors import UserError
from flm_jax.core.files import append_json_line, read_json_lines
from flm_jax.core.progress import tracked
from flm_jax.evaluation.benchmarks.base import Record
from flm_jax.evaluation.benchmarks.chat_endpoint import Endpoint, ask
from flm_jax.evaluation.benchmarks.judge_prompts import PROMPTS, JudgePrompt, judge_prompt, rating
from flm_jax.evaluation.benchmarks.mt_bench_files import Question
from flm_jax.metrics.intervals import interval

_TURNS = ("first_turn", "second_turn")


class Judging(NamedTuple):
    """Settings of judging; see `judge_prompt`."""

    endpoint: Endpoint
    prompts: Mapping[str, JudgePrompt] = PROMPTS
    references: Mapping[int, Sequence[str]] | None = None
    workers: int = 4


def turns_of(records: Sequence[Record]) -> dict[int, list[str]]:
    """Dict from each question to its answers, turn by turn."""
    found: dict[int, list[str]] = {}
    for record in sorted(records, key=lambda record: record["turn"]):
        found.setdefault(record["id"], []).append(record["answer"])
    return found


def judge(
    questions: Sequence[Question], records: Sequence[Record], model: str, folder: Path, how: Judging
) -> Record:
    """Grades all answers that have no grade yet, and returns the mean grades.

    A grade is appended to FOLDER/judgments_JUDGE.jsonl, in FastChat's format, as soon as it
    arrives.

    Args:
      questions: questions of the benchmark.
      records: records of the answers.
      model: name of the model.
      folder: folder of the benchmark run.
      how: settings of judging.

    Returns:
      Mean grade of each turn and of all, with 95% intervals over questions.

    Raises:
      UserError: the judge cannot be reached; existing grades are kept.
    """
    safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in how.endpoint.model)
    path = folder / f"judgments_{safe}.jsonl"
    answers = turns_of(records)
    asked = [q for q in questions if q.id in answers]
    # Graded answers that were written anew since are graded again.
    told = {
        (q.id, turn): judge_prompt(q, answers[q.id], turn, how.prompts, how.references)
        for q in asked
        for turn in range(len(answers[q.id]))
    }
    done = {
        (line["question_id"], line["turn"] - 1): line
        for line in read_json_lines(path, mend=True)
        if told.get((line["question_id"], line["turn"] - 1), (0, 0, 0))[2] == line["user_prompt"]
    }
    todo = [key for key in told if key not in done]

    def grade(key) -> Record:
        name, system, user = told[key]
        text = ask(how.endpoint, system, user)
        return {
            "question_id": key[0],
            "model": model,
            "judge": [how.endpoint.model, name],
            "user_prompt": user,
            "judgment": text,
            "score": rating(text) or -1,
            "turn": key[1] + 1,
            "tstamp": time.time(),
        }

    failure = None
    with concurrent.futures.ThreadPoolExecutor(how.workers) as pool:
        waiting = {pool.submit(grade, key): key for key in todo}
        completed = concurrent.futures.as_completed(waiting)
        for future in tracked(completed, "grades", len(waiting)):
            if future.cancelled():
                continue
            try:
                done[waiting[future]] = future.result()
            except UserError as error:
                failure = failure or error
                for other in waiting:
                    other.cancel()
                continue
            append_json_line(path, [done[waiting[future]]])
    if failure:
        raise UserError(
            f"{failure} {len(done)} of {len(told)} grades are kept in {path}; run the same command "
            "again for the others."
        ) from failure
    return _grades(done)


def _grades(done: Mapping[tuple[int, int], Record]) -> Record:
    """Means over questions; -1 stands for an answer of the judge without a grade."""
    row: Record = {}
    scores = {key: line["score"] for key, line in done.items() if line["score"] > 0}
    for turn, name in enumerate(_TURNS):
        of_turn = [score for (_, t), score in scores.items() if t == turn]
        if of_turn:
            row[name], row[f"{name}_low"], row[f"{name}_high"] = interval(
                np.mean, np.array(of_turn)
            )
    each = [
        np.mean([scores[i, t] for t in range(2) if (i, t) in scores])
        for i in dict.fromkeys(i for i, _ in scores)
    ]
    if each:
        row |= _mean("grade", each)
    return row | {"not_graded": len(done) - len(scores)}


def _mean(name: str, values: Sequence[float]) -> Record:
    mean, low, high = interval(np.mean, np.array(values))
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
