"""Answers to prompts of different lengths, generated batch by batch."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from flm_jax.build.load import Model
from flm_jax.core.errors import require
from flm_jax.inference import engine
from flm_jax.inference.prompts import Layout, Prompt, answer_texts, lay_out, uncut_text
from flm_jax.samplers.base import SamplerConfig, Steps


@dataclasses.dataclass(frozen=True)
class Answering:
    """Settings with which prompts are answered.

    Attributes:
      steps: step count of the sampler, a number or a fraction of the tokens to generate; ignored by
        autoregressive models.
      batch_size: number of prompts at a time.
      seed: seed of the random draws.
      length: largest number of tokens of prompt and answer; 0 for the length of training.
      answer_length: number of tokens to generate for prompts that set no length of their own; 0 for
        all the room that is left.
      chat: whether each prompt is framed as the question of a chat exchange.
      sampler: settings of the sampler; None for the model's own.
      cut: whether prompts that leave no room are cut at their beginning.
    """

    steps: Steps
    batch_size: int = 32
    seed: int = 0
    length: int = 0
    answer_length: int = 0
    chat: bool = False
    sampler: SamplerConfig | None = None
    cut: bool = False


class Answer(NamedTuple):
    """Answer to the prompt with index `place`.

    Attributes:
      text: generated text up to the end of the answer.
      whole: text of prompt and answer, without special tokens.
      calls: number of network calls of its batch.
      uncut: all generated text, including what follows the end of the answer.
    """

    place: int
    text: str
    whole: str
    calls: float
    uncut: str = ""


def answer_batches(
    model: Model,
    prompts: Sequence[Prompt],
    how: Answering,
    wanted: Callable[[int], bool] = lambda place: True,
) -> Iterator[list[Answer]]:
    """Yields one answer to each wanted prompt, batch by batch; see `engine.completions`.

    Raises:
      UserError: a prompt that does not fit (the message names its place), or impossible numbers;
        before compiling.
    """
    length = how.length or model.net.max_length
    engine.check_request(model, [how.steps], len(prompts), length)
    require(how.batch_size >= 1, f"got batch_size={how.batch_size}; expected at least 1.")
    require(how.answer_length >= 0, f"got answer_length={how.answer_length}; expected 0 or more.")
    if how.answer_length:
        prompts = [
            p._replace(answer_length=how.answer_length) if p.answer_length is None else p
            for p in prompts
        ]
    rows = lay_out(model, prompts, length, chat=how.chat, cut=how.cut)
    (steps,) = engine.step_counts(model, [how.steps], rows.given.tokens.shape[1])
    settings = dict(steps=steps, batch_size=how.batch_size, seed=how.seed, sampler=how.sampler)
    for done in engine.completions(model, rows.given, wanted=wanted, **settings):
        yield [
            _answer(model, rows, place, tokens, done.calls)
            for place, tokens in zip(done.places.tolist(), done.tokens)
        ]


def _answer(model: Model, rows: Layout, place: int, tokens: np.ndarray, calls: float) -> Answer:
    start, stop = int(rows.starts[place]), int(rows.stops[place])
    texts = answer_texts(model.tokenizer, tokens, start, stop)
    return Answer(place, *texts, calls, uncut_text(model.tokenizer, tokens, start, stop))
