"""Texts that a model writes for itself to learn from, part by part; interrupted, it continues."""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
from etils import epath

from flm_jax.build.load import Model, load_model
from flm_jax.build.sampler import model_sampler, sampler_record
from flm_jax.core.errors import check_seed, require
from flm_jax.core.locks import alone_in
from flm_jax.core.paths import check_folder, expanded
from flm_jax.core.types import Config
from flm_jax.data import self_generated
from flm_jax.data.chat import ChatSource, Framing, read_exchanges
from flm_jax.data.tasks.registry import make_task
from flm_jax.inference import engine
from flm_jax.samplers.base import Given, SamplerConfig, Steps, plain_steps


class TrainingPrompts(NamedTuple):
    """What is given: tokens int32 [N, L], 0 elsewhere; given bool [N, L]; and what they are."""

    tokens: np.ndarray
    given: np.ndarray
    kind: str


def training_prompts(model: Model, num: int, seed: int, chat: str = "") -> TrainingPrompts:
    """Questions of a file, or problems of the model's task, or nothing given.

    Args:
      num: how many; of a file its first ones, again from the start where it has fewer.
      seed: of the problems.
      chat: JSON lines of questions, see `data.chat`; "" for none.
    """
    length, task = model.net.max_length, model.config["data"]["task"]
    if chat:
        rows = ChatSource(read_exchanges(chat), model.tokenizer, Framing(length, "ignored", "cut"))
        some = [rows[i % len(rows)] for i in range(num)]
        given = np.stack([row["prompt"] for row in some])
        return TrainingPrompts(np.stack([row["tokens"] for row in some]) * given, given, "chat")
    if task and make_task(task).has_problems:
        return TrainingPrompts(*make_task(task).problems(num, seed), f"problems of {task}")
    zeros = np.zeros((num, length), np.int32)
    return TrainingPrompts(zeros, zeros.astype(bool), "nothing given")


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
    asked = training_prompts(model, num, seed, chat)
    folder, parts = epath.Path(out), -(-num // rows)
    args = {
        "workdir": str(workdir),
        "step": model.step,
        "steps": plain_steps(steps),
        "batch_size": rows,
        "seed": seed,
        "given": asked.kind,
        "sampler": sampler_record(sampler),
    }
    todo = self_generated.begin(folder, args, num, parts, model.tokenizer)
    settings = dict(steps=steps, batch_size=rows, seed=seed, sampler=sampler)
    wanted = lambda place: place // rows in todo
    given = Given(asked.tokens, asked.given)
    for done in engine.completions(model, given, wanted=wanted, **settings):
        part, prompt = int(done.places[0]) // rows, asked.given[done.places]
        mask = ended(done.tokens, prompt, model.tokenizer.end_ids)
        self_generated.write_part(
            folder, part, {"tokens": done.tokens, "prompt": prompt, "mask": mask}
        )
        show(part + 1, parts)
    return f"{num} texts, {asked.kind}; {len(todo)} of {parts} parts written now"
