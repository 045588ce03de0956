"""MT-Bench (arXiv 2306.05685): two-turn questions, answer files in FastChat's format, judging.

A judge model rates each answer from 1 to 10, the second with the first turn before it.
"""

import concurrent.futures
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flm_jax.core.errors import UserError, require
from flm_jax.core.files import append_json_line, json_lines, read_json_lines, write_whole
from flm_jax.data.jsonl import read_records, text_field
from flm_jax.evaluation.benchmarks import chat_endpoint
from flm_jax.evaluation.benchmarks.base import Benchmark, Choices, Record, limited
from flm_jax.evaluation.benchmarks.chat_endpoint import Endpoint, ask
from flm_jax.evaluation.benchmarks.sandbox import Sandbox
from flm_jax.inference.prompts import Prompt
from flm_jax.metrics.intervals import interval

_RATING = re.compile(r"\[\[ *([0-9]+(?:\.[0-9]+)?) *\]\]")
_WITH_REFERENCE = ("math", "reasoning", "coding")  # categories judged beside a reference answer
_PLAIN_PROMPTS, _REFERENCE_PROMPTS = (
    (name, f"{name}-multi-turn") for name in ("single-v1", "single-math-v1")
)
_TASK = (
    "You grade the answers of a chat assistant. Weigh whether the answer is correct, helpful, "
    "relevant, thorough and creative; its length alone is no merit. Explain your grade in a few "
    "sentences, then give it as a number from 1 (worst) to 10 (best) in this form: [[5]]."
)


class JudgePrompt(NamedTuple):
    """What a judge is told; the template has the fields question, answer or question_1, ..."""

    system: str
    template: str


PROMPTS: Mapping[str, JudgePrompt] = {
    "single-v1": JudgePrompt(_TASK, "Question:\n{question}\n\nAnswer to grade:\n{answer}"),
    "single-v1-multi-turn": JudgePrompt(
        f"{_TASK} The conversation has two turns: grade the second answer.",
        "First question:\n{question_1}\n\nFirst answer:\n{answer_1}\n\n"
        "Second question:\n{question_2}\n\nAnswer to grade:\n{answer_2}",
    ),
}


class Question(NamedTuple):
    """A question of two turns."""

    id: int
    category: str
    turns: tuple[str, str]


def read_questions(path: str) -> list[Question]:
    """Questions of a file in FastChat's format.

    Raises:
      UserError: no such file, or a bad line (its number).
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


def prompt(question: Question, answers: Sequence[str], chat: bool) -> Prompt:
    """What a model is given in the turn after `answers`."""
    if not answers:
        first = question.turns[0]
        return Prompt(first if chat else f"Question: {first}\nAnswer:")
    first, second = question.turns
    if chat:
        return Prompt(second, before=(first, answers[0]))
    told = answers[0].strip()
    return Prompt(f"Question: {first}\nAnswer: {told}\n\nQuestion: {second}\nAnswer:")


def answer_line(question: int, turns: Sequence[str], model: str, when: float) -> dict[str, Any]:
    """A line of FastChat's answer files."""
    return {
        "question_id": question,
        "answer_id": f"{model}-{question}",
        "model_id": model,
        "choices": [{"index": 0, "turns": list(turns)}],
        "tstamp": when,
    }


def read_prompts(path: str) -> dict[str, JudgePrompt]:
    """Judge prompts in FastChat's format: name, system_prompt, prompt_template.

    Raises:
      UserError: no such file, a bad line, or one of the two that are needed is not there.
    """
    found = {}
    for where, record in read_records(path, "JSON lines of judge prompts"):
        names = ("name", "system_prompt", "prompt_template")
        name, system, template = (text_field(record, key, where) for key in names)
        found[name] = JudgePrompt(system, template)
    missing = [name for name in _PLAIN_PROMPTS if name not in found]
    require(not missing, f"{path} has no prompt {' and '.join(missing)}; it has {sorted(found)}.")
    return found


def read_references(path: str) -> dict[int, tuple[str, ...]]:
    """Reference answers of a file in FastChat's answer format, by question."""
    found = {}
    for where, record in read_records(path, "JSON lines of answers"):
        try:
            found[int(record["question_id"])] = tuple(record["choices"][0]["turns"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"{where}: expected 'question_id' and 'choices' with 'turns', got {sorted(record)}."
            ) from error
    return found


def judge_prompt(
    question: Question,
    answers: Sequence[str],
    turn: int,
    prompts: Mapping[str, JudgePrompt] = PROMPTS,
    references: Mapping[int, Sequence[str]] | None = None,
) -> tuple[str, str, str]:
    """(name, system, user) of the prompt that rates an answer.

    Args:
      answers: of the model, one each turn.
      turn: 0 or 1.
      prompts: by FastChat's names.
      references: answers to compare with, by question; used for mathematics, reasoning and coding
        where `prompts` has prompts for that.

    Raises:
      UserError: a template with unknown fields.
    """
    own = (references or {}).get(question.id)
    kinds = _PLAIN_PROMPTS
    if own and question.category in _WITH_REFERENCE and _REFERENCE_PROMPTS[turn] in prompts:
        kinds = _REFERENCE_PROMPTS
    fields = {"question": question.turns[0], "answer": answers[0]}
    for i in range(2):
        fields[f"question_{i + 1}"] = question.turns[i]
        fields[f"answer_{i + 1}"] = answers[i] if i < len(answers) else ""
        fields[f"ref_answer_{i + 1}"] = own[i] if own and i < len(own) else ""
    found = prompts[kinds[turn]]
    try:
        return kinds[turn], found.system, found.template.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"judge prompt {kinds[turn]}: {error!r}; expected the fields {', '.join(fields)}."
        ) from error


def rating(text: str) -> float | None:
    """The grade that a judge gave, [[1]] to [[10]]; None without one."""
    found = _RATING.search(text)
    return float(found[1]) if found and 1 <= float(found[1]) <= 10 else None


ANSWERS = "answers.jsonl"
_TURNS = ("first_turn", "second_turn")


class Judging(NamedTuple):
    """How answers are judged; see `judge_prompt`."""

    endpoint: Endpoint
    prompts: Mapping[str, JudgePrompt] = PROMPTS
    references: Mapping[int, Sequence[str]] | None = None
    workers: int = 4


def turns_of(records: Sequence[Record]) -> dict[int, list[str]]:
    """Answers to each question, turn by turn."""
    found: dict[int, list[str]] = {}
    for record in sorted(records, key=lambda record: record["turn"]):
        found.setdefault(record["id"], []).append(record["answer"])
    return found


def write_answers(folder: Path, records: Sequence[Record], model: str) -> Path:
    """Writes the file of answers that FastChat's own judging reads, and says where it is."""
    now = time.time()
    lines = [answer_line(i, turns, model, now) for i, turns in turns_of(records).items()]
    write_whole(folder / ANSWERS, json_lines(lines))
    return folder / ANSWERS


def judge(
    questions: Sequence[Question], records: Sequence[Record], model: str, folder: Path, how: Judging
) -> Record:
    """Has all answers graded, those that are not yet, and says the mean grades.

    A grade is written to FOLDER/judgments_JUDGE.jsonl, in FastChat's format, when it is there.

    Args:
      records: of the answers.
      model: its name.

    Returns:
      Mean grade of each turn and of both, with 95% intervals over questions.

    Raises:
      UserError: the judge cannot be reached; the grades that are there are kept.
    """
    safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in how.endpoint.model)
    path = folder / f"judgments_{safe}.jsonl"
    answers = turns_of(records)
    asked = [q for q in questions if q.id in answers]
    # Graded answers that were written anew since are graded again.
    told = {
        (q.id, turn): judge_prompt(q, answers[q.id], turn, how.prompts, how.references)
        for q in asked
        for turn in range(2)
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
        for future in concurrent.futures.as_completed(waiting):
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


def judged(
    questions: Sequence[Question],
    choices: Choices,
    records: Sequence[Record],
    model: str,
    folder: Path,
) -> Record:
    """Writes the answer file, and has it graded where the environment names a judge."""
    print(f"wrote {write_answers(folder, records, model)}")
    endpoint = chat_endpoint.from_environment(os.environ)
    if endpoint is None:
        print(
            f"not judged: {chat_endpoint.URL} is not set; expected the URL of an OpenAI-compatible "
            f"endpoint there, {chat_endpoint.KEY} and {chat_endpoint.MODEL}. The same command then "
            "judges."
        )
        return {}
    prompts = read_prompts(choices.judge_prompts) if choices.judge_prompts else PROMPTS
    references = read_references(choices.judge_references) if choices.judge_references else None
    return judge(questions, records, model, folder, Judging(endpoint, prompts, references))


def make_mt_bench(path: str, choices: Choices, sandbox: Sandbox | None) -> Benchmark:
    """MT-Bench from FastChat's question.jsonl."""
    del sandbox
    asked = read_questions(path)
    questions = limited(asked, choices)
    return Benchmark(
        ids=[question.id for question in questions],
        prompt=lambda i, before: prompt(questions[i], before, choices.chat),
        reference=None,
        score=lambda pairs: [{"category": questions[i].category} for i, _ in pairs],
        summary=lambda records: {},
        turns=2,
        finish=lambda *done: judged(asked, choices, *done),
    )
