"""MT-Bench (arXiv 2306.05685): two-turn questions, answer files in FastChat's format, judging.

A judge model rates each answer from 1 to 10, the second with the first turn before it.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from flm_jax.core.errors import require
from flm_jax.core.files import json_lines, write_whole
from flm_jax.evaluation.benchmarks import chat_endpoint
from flm_jax.evaluation.benchmarks.base import Benchmark, Choices, Record, limited
from flm_jax.evaluation.benchmarks.judge_prompts import PROMPTS, read_prompts, whose
from flm_jax.evaluation.benchmarks.judging import Judging, judge, turns_of
from flm_jax.evaluation.benchmarks.mt_bench_files import (
    Question,
    answer_line,
    read_questions,
    read_references,
)
from flm_jax.evaluation.benchmarks.sandbox import Sandbox
from flm_jax.inference.prompts import Prompt

ANSWERS = "answers.jsonl"
# The system's sentences of Vicuna 1.1, which the models of arXiv 2606.27617 are asked with.
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
_NO_TEXT = ("<s>", "</s>", "<unk>")  # names of special tokens that a model may spell out
_ROLES = ("ASSISTANT:", "Assistant:")


def prompt(question: Question, answers: Sequence[str], chat: bool, style: str = "") -> Prompt:
    """Returns the prompt of the turn after `answers`; the style "vicuna" has one turn alone."""
    if style == "vicuna":
        return Prompt(f"{_VICUNA} USER: {question.turns[0]} ASSISTANT:")
    if not answers:
        first = question.turns[0]
        return Prompt(first if chat else f"Question: {first}\nAnswer:")
    first, second = question.turns
    if chat:
        return Prompt(second, before=(first, answers[0]))
    told = answers[0].strip()
    return Prompt(f"Question: {first}\nAnswer: {told}\n\nQuestion: {second}\nAnswer:")


def trimmed(text: str, stops: Sequence[str]) -> str:
    """Cuts a text at the first of the stop strings."""
    return text[: min((at for at in map(text.find, stops) if at >= 0), default=len(text))]


def cleaned(text: str, stops: Sequence[str]) -> str:
    """Returns the part of an answer that is kept.

    The answer is trimmed, and loses the names of special tokens, surrounding space, and an
    assistant's name at its beginning.
    """
    text = trimmed(text, stops)
    for name in _NO_TEXT:
        text = text.replace(name, "")
    text = text.strip()
    for role in _ROLES:
        text = text.removeprefix(role).strip()
    return text


def write_answers(folder: Path, records: Sequence[Record], model: str) -> Path:
    """Writes the answer file for FastChat's own judging, and returns its path."""
    now = time.time()
    lines = [answer_line(i, turns, model, now) for i, turns in turns_of(records).items()]
    write_whole(folder / ANSWERS, json_lines(lines))
    return folder / ANSWERS


def judged(
    questions: Sequence[Question],
    choices: Choices,
    records: Sequence[Record],
    model: str,
    folder: Path,
) -> Record:
    """Writes the answer file, and has it graded if the environment names a judge."""
    print(f"wrote {write_answers(folder, records, model)}")
    endpoint = chat_endpoint.from_environment(os.environ, choices.judge_model)
    if endpoint is None:
        print(
            f"not judged: {chat_endpoint.URL} is not set; expected the URL of an OpenAI-compatible "
            f"endpoint there, {chat_endpoint.KEY} and {chat_endpoint.MODEL}. The same command then "
            "judges."
        )
        return {}
    prompts = read_prompts(choices.judge_prompts) if choices.judge_prompts else PROMPTS
    references = read_references(choices.judge_references) if choices.judge_references else None
    row: Record = {"judge": endpoint.model, "judge_prompts": whose(prompts)}
    return row | judge(questions, records, model, folder, Judging(endpoint, prompts, references))


def make_mt_bench(path: str, choices: Choices, sandbox: Sandbox | None) -> Benchmark:
    """Builds MT-Bench from FastChat's question.jsonl.

    Raises:
      UserError: no such file, a bad line, or Vicuna's prompt for a second turn.
    """
    del sandbox
    style = choices.prompt_style
    require(
        style != "vicuna" or choices.first_turn,
        "got prompt_style='vicuna' for two turns; it is that of a first turn, add --first_turn.",
    )
    asked = read_questions(path)
    questions = limited(asked, choices)
    return Benchmark(
        ids=[question.id for question in questions],
        prompt=lambda i, before: prompt(questions[i], before, choices.chat, style),
        reference=None,
        score=lambda pairs: [{"category": questions[i].category} for i, _ in pairs],
        summary=lambda records: {},
        turns=1 if choices.first_turn else 2,
        finish=lambda *done: judged(asked, choices, *done),
        cleaned=lambda text: cleaned(text, choices.stop_strings),
    )
