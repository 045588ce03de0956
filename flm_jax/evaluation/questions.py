"""Answers to held-out questions, right where the model's files give the same answer to them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from flm_jax.build.families.registry import family
from flm_jax.build.sampler import model_sampler
from flm_jax.core.errors import require
from flm_jax.core.types import Config
from flm_jax.data.loading import Data
from flm_jax.data.pipeline import Batch, Source
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.evaluation.measure import subject
from flm_jax.evaluation.tables import Row, with_interval
from flm_jax.inference import engine
from flm_jax.inference.prompts import answer_texts
from flm_jax.metrics.intervals import share_interval
from flm_jax.samplers.base import Given, SamplerConfig

_TEXTS = 64  # that a row keeps
Answers = dict[bytes, set[str]]


def held_out_questions(data: Data | None, count: int) -> Given:
    """Returns the first `count` held-out questions, arrays [count, L]; few are asked in turn.

    Raises:
      UserError: the data are no exchanges.
    """
    rows = [data.valid[i % len(data.valid)] for i in range(count)] if data else [{}]
    require(
        all("written" in row for row in rows),
        f"got questions={count} for a model that was trained on no exchanges; expected one of "
        "config.data.chat, or 0.",
    )
    prompt = np.stack([row["prompt"] for row in rows])
    return Given(np.stack([row["tokens"] for row in rows]) * prompt, prompt)


def answered_rows(
    workdir: str,
    steps: Sequence[int],
    *,
    questions: int,
    batch_size: int,
    seed: int,
    choose: Callable[[Config], SamplerConfig] = model_sampler,
    show: Callable[[int], None] = lambda done: None,
) -> Iterator[Row]:
    """Yields one table row per step count, of the answers of a model to held-out questions.

    Args:
      workdir: workdir of a model that was trained on exchanges, which must still be available.
      steps: step counts; a model without a choice of steps answers once.
      questions: number of questions, at least 1; few held-out ones are asked in turn.
      batch_size: number of questions at a time.
      seed: seed of the random draws.
      choose: function from the model's configuration to its sampler.
      show: callback that takes the number of answers of all rows, after each batch.

    Yields:
      `answer_figures`, the number of network calls for a batch, and "samples", the completed texts.

    Raises:
      UserError: no such model, or one without held-out questions.
    """
    what = subject(workdir)
    model, length = what.model, what.model.net.max_length
    engine.check_request(model, steps, questions, length)
    given = held_out_questions(what.data, questions)
    known = known_answers(what.data)
    how = {"batch_size": batch_size, "seed": seed, "sampler": choose(model.config)}
    for number, count in enumerate(engine.step_counts(model, steps, length)):
        shown = lambda done, before=number * questions: show(before + done)
        done = engine.complete(model, given, shown, steps=count, **how)
        tokens = done.tokens[np.argsort(done.places)]
        yield {
            "model": workdir,
            "kind": family(model.config).kind(model.net),
            "calls": done.calls,
            **answer_figures(known, model.tokenizer, given, tokens),
            "samples": [model.tokenizer.decode(row) for row in tokens[:_TEXTS]],
        }


def known_answers(data: Data) -> Answers:
    """All answers that training and held-out exchanges give to a question, by its tokens."""
    known: Answers = defaultdict(set)
    for source in (*(source for source, _ in data.train), data.valid):
        for row in _rows(source):
            question, answer = _pair(data.tokenizer, row["tokens"], row["prompt"])
            known[question].add(answer)
    return known


def answer_figures(known: Answers, tokenizer: Tokenizer, given: Given, tokens: np.ndarray) -> Row:
    """Figures of answered questions.

    Args:
      known: result of `known_answers`.
      tokenizer: tokenizer of the model.
      given: result of `held_out_questions`.
      tokens: completed rows, int [N, L], in the order of `given`.

    Returns:
      answers_right: share of the answers that the files give to their question, with its 95%
        interval.
      answers_varied: number of different right answers, of all questions, over the number that as
        many draws of the files' answers would have in the mean: 1 for a model of their law, less
        for one that repeats itself; left out without a right answer.
    """
    pairs = [_pair(tokenizer, *row) for row in zip(tokens, np.asarray(given.mask))]
    right = [pair for pair in pairs if pair[1] in known[pair[0]]]
    share = len(right) / len(pairs)
    row = with_interval("answers_right", (share, *share_interval(share, len(pairs))))
    if right:
        row["answers_varied"] = len(set(right)) / _expected(known, [one for one, _ in right])
    return row


def _expected(known: Answers, questions: Sequence[bytes]) -> float:
    """Mean number of different answers of as many draws, uniform over the answers known."""
    kinds = {question: len(known[question]) for question in set(questions)}
    return sum(
        kinds[question] * (1.0 - (1.0 - 1.0 / kinds[question]) ** asked)
        for question, asked in Counter(questions).items()
    )


def _rows(source: Source) -> Iterable[Batch]:
    return (source[i] for i in range(len(source)))


def _pair(tokenizer: Tokenizer, tokens: np.ndarray, prompt: np.ndarray) -> tuple[bytes, str]:
    """Tokens of the question of a row [L], and the text of its answer."""
    start = int(np.sum(prompt))
    answer = answer_texts(tokenizer, tokens, start, len(tokens)).answer
    return np.asarray(tokens[:start], np.int32).tobytes(), answer
