"""Texts that a model writes for itself to learn from, part by part; interrupted, it continues."""

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
    """What is given, arrays [N, L] with tokens of 0 elsewhere, and what they are."""

    given: Given
    kind: str


def training_prompts(
    model: Model, num: int, seed: int, chat: str = "", answer_length: int = 0
) -> TrainingPrompts:
    """Questions of a file, or problems of the model's task, or nothing given.

    Args:
      num: how many; of a file its first ones, again from the start where it has fewer.
      seed: of the problems.
      chat: JSON lines of questions, see `data.chat`; "" for none. Those that leave no room for an
        answer are left out.
      answer_length: tokens of an answer, its canvas: what stands behind is neither written nor
        seen; 0 for as many as there is room for.

    Raises:
      UserError: no question leaves room; a canvas where there is none, or one that is too long.
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
    """Rows of which no more than `answer_length` tokens are written, and nothing behind is seen."""
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
    """Whether what a model writes behind an answer's end belongs to its answer.

    So it does where rows were filled with ends of text that count: of exchanges whose padding is
    "answer", and of published models whose mask is a token (LLaDA, LLaDA2.0).
    """
    data = config["data"]
    if data["chat"]:
        return data["padding"] == "answer"
    own = any(data[key] for key in ("path", "mixture", "task", "generated"))
    return not own and config["model"].get("mask_id", -1) >= 0


def ended(tokens: np.ndarray, given: np.ndarray, end_ids: Collection[int]) -> np.ndarray:
    """Valid positions, bool [N, L]: up to the first end of the answer, itself included."""
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
    """Writes `num` texts of a model to the folder `out`, those parts of it that are missing.

    Args:
      workdir: of a trained model.
      num: texts; a last, shorter batch is filled up and cut.
      steps: of the sampler, a number or a share of the tokens to write; 0 for one a token.
      choose: configuration of the model -> its sampler.
      batch_size: texts of a part.
      seed: of the draws and of a task's problems. A text depends on seed and batch_size alone.
      chat, answer_length: see `training_prompts`.
      tail: whether what stands behind an answer's end is part of the text; None for
        `counts_tail`.
      show: called after each part.

    Returns:
      One line about what was given.

    Raises:
      UserError: bad requests; a folder begun with other arguments.
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
