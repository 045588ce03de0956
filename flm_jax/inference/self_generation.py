"""Texts that a model generates as its own training data; an interrupted run continues."""

import logging
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
from etils import epath

from flm_jax.build.families.registry import family
from flm_jax.build.load import Model, load_model
from flm_jax.build.sampler import model_sampler, sampler_record
from flm_jax.core.errors import check_seed, require
from flm_jax.core.locks import alone_in
from flm_jax.core.paths import check_folder, expanded
from flm_jax.core.types import Config
from flm_jax.data import self_generated
from flm_jax.data.chat import asked, read_exchanges
from flm_jax.data.tasks.registry import make_task
from flm_jax.inference import engine
from flm_jax.samplers.base import Given, SamplerConfig, Steps, plain_steps


class TrainingPrompts(NamedTuple):
    """Prescribed tokens, arrays [N, L] with token 0 elsewhere, and a description of them."""

    given: Given
    kind: str


def training_prompts(
    model: Model, num: int, seed: int, chat: str = "", answer_length: int = 0
) -> TrainingPrompts:
    """Returns the questions of a file, or problems of the model's task, or nothing prescribed.

    Args:
      num: number of prompts; the first ones of a file, which is repeated if it has fewer.
      seed: seed of the problems.
      chat: file of questions in JSON lines, see `data.chat`; "" for none. Questions that leave no
        room for an answer are left out.
      answer_length: number of tokens of an answer (its canvas), after which nothing is generated or
        seen; 0 for all the room that is left.

    Raises:
      UserError: no question leaves room, the model has no canvas, or the canvas is too long.
    """
    length, task = model.net.max_length, model.config["data"]["task"]
    require(
        answer_length >= 0 and (not answer_length or family(model.config).canvas),
        f"got answer_length={answer_length}; expected 0 or more, and 0 of models that are no "
        "masked diffusion.",
    )
    tokens, given, kind = np.zeros((num, length), np.int32), np.zeros((num, length), bool), ""
    if chat:
        rows, kind = _questions(model, chat, length, max(answer_length, 1)), "chat"
        for i in range(num):
            row = rows[i % len(rows)]
            tokens[i, : len(row)], given[i, : len(row)] = row, True
    elif task and make_task(task).has_problems:
        (tokens, given), kind = make_task(task).problems(num, seed), f"problems of {task}"
    return TrainingPrompts(_on_canvas(tokens, given, answer_length), kind or "nothing given")


def _questions(model: Model, chat: str, length: int, least: int) -> list[np.ndarray]:
    """Tokens of the questions of a file that leave room for `least` more."""
    rows = [asked(model.tokenizer, [one.prompt]) for one in read_exchanges(chat)]
    fit = [row for row in rows if len(row) + least <= length]
    said = (
        f"{chat}: {len(rows) - len(fit)} of {len(rows)} questions leave no room for an answer of "
        f"{least} in {length} tokens"
    )
    require(bool(fit), f"{said}; give a shorter --answer_length.")
    if len(fit) < len(rows):
        logging.warning("%s, and are left out", said)
    return fit


def _on_canvas(tokens: np.ndarray, given: np.ndarray, answer_length: int) -> Given:
    """Rows with at most `answer_length` tokens to generate, and nothing visible after them."""
    if not answer_length:
        return Given(tokens, given)
    stops = np.argmin(given, axis=1) + answer_length
    require(
        bool((stops <= tokens.shape[1]).all()),
        f"got answer_length={answer_length} for rows of {tokens.shape[1]} tokens; expected at most "
        f"{tokens.shape[1] - int(stops.max()) + answer_length}.",
    )
    seen = np.arange(tokens.shape[1])[None] < stops[:, None]
    return Given(tokens, given | ~seen, seen)


def counts_tail(config: Config) -> bool:
    """Whether the tokens that a model generates after an answer's end belong to its answer.

    They do if rows were filled with ends of text that count: for exchanges whose padding is
    "answer", and for published models whose mask is a token (LLaDA, LLaDA2.0).
    """
    data = config["data"]
    if data["chat"]:
        return data["padding"] == "answer"
    own = any(data[key] for key in ("path", "mixture", "task", "generated"))
    return not own and config["model"].get("mask_id", -1) >= 0


def ended(tokens: np.ndarray, given: np.ndarray, end_ids: Collection[int]) -> np.ndarray:
    """Mask of valid positions, bool [N, L]: those up to the first end of the answer, inclusive."""
    # Positions before which there is no end; the end itself is one of them.
    stops = np.isin(tokens, sorted(end_ids)) & ~given
    return np.cumsum(stops, axis=1) - stops == 0


@alone_in("out", "generating texts")
def generate(
    workdir: str,
    out: str,
    *,
    num: int,
    steps: Steps,
    batch_size: int,
    seed: int,
    choose: Callable[[Config], SamplerConfig] = model_sampler,
    chat: str = "",
    answer_length: int = 0,
    tail: bool | None = None,
    show=lambda done, parts: None,
) -> str:
    """Generates `num` texts of a model into the folder `out`; parts that exist are kept.

    Args:
      workdir: workdir of a trained model.
      num: number of texts; a last, shorter batch is filled up and cut.
      steps: step count of the sampler, a number or a fraction of the tokens to generate; 0 for one
        step for each token.
      choose: function from the model's configuration to its sampler.
      batch_size: number of texts in a part.
      seed: seed of the random draws and of a task's problems. A text depends on seed and batch_size
        alone.
      chat, answer_length: the same as for `training_prompts`.
      tail: whether the tokens after an answer's end are part of the text; None for `counts_tail`.
      show: callback after each part.

    Returns:
      One line about what was prescribed.

    Raises:
      UserError: bad requests, or a folder that was started with other arguments.
    """
    out = expanded(out)
    check_folder(out, "--out")
    check_seed(seed)
    model = load_model(workdir)
    sampler = choose(model.config)
    steps = steps or model.net.max_length
    engine.check_request(model, [steps], num, model.net.max_length)
    require(batch_size >= 1, f"got batch_size={batch_size}; expected at least 1.")
    rows = min(batch_size, num)
    prompts = training_prompts(model, num, seed, chat, answer_length)
    tail = counts_tail(model.config) if tail is None else tail
    folder, parts = epath.Path(out), -(-num // rows)
    args = {
        "workdir": str(workdir),
        "step": model.step,
        "steps": plain_steps(steps),
        "batch_size": rows,
        "seed": seed,
        "given": prompts.kind,
        "sampler": sampler_record(sampler),
    }
    args |= {"answer_length": answer_length} if answer_length else {}
    args |= {"tail": True} if tail else {}
    todo = self_generated.begin(folder, args, num, parts, model.tokenizer)
    settings = dict(steps=steps, batch_size=rows, seed=seed, sampler=sampler)
    wanted = lambda place: place // rows in todo
    for done in engine.completions(model, prompts.given, wanted=wanted, **settings):
        part, prompt = int(done.places[0]) // rows, prompts.given.mask[done.places]
        seen = prompts.given.visible
        seen = np.ones_like(prompt) if seen is None else seen[done.places]
        own = np.ones_like(prompt) if tail else ended(done.tokens, prompt, model.tokenizer.end_ids)
        arrays = {"tokens": done.tokens, "prompt": prompt, "mask": own & seen}
        arrays |= {"visible": seen} if answer_length else {}
        self_generated.write_part(folder, part, arrays)
        show(part + 1, parts)
    return f"{num} texts, {prompts.kind}; {len(todo)} of {parts} parts written now"
