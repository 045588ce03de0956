"""Sampling from a loaded model: prompts, infills and trajectories, one program for each shape."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.build.families.registry import family
from flm_jax.build.load import Model
from flm_jax.build.sampler import make_sampler, model_sampler
from flm_jax.core.errors import check_seed, require
from flm_jax.distributed.agreement import in_turn
from flm_jax.inference.guides import load_guides
from flm_jax.inference.prompts import Prompt, lay_out
from flm_jax.samplers.base import (
    Given,
    SamplerConfig,
    Samples,
    Share,
    Steps,
    nothing_given,
)
from flm_jax.samplers.steering import GuidedConfig
from flm_jax.samplers.unmasking import check_calls


class Draw(NamedTuple):
    """Samples of one step count.

    Attributes:
      tokens: int32 [N, L].
      steps_tokens, steps_confidence: arrays [K, N, L] after each step, or K = 1 after the last one
        alone.
      seconds: wall time without compilation.
      calls: number of network calls for a batch, averaged over batches.
      steps_progress: array [K, N, L], unmasking progress of each position after each step; None
        where all positions of a text share it.
    """

    tokens: np.ndarray
    steps_tokens: np.ndarray
    steps_confidence: np.ndarray
    seconds: float
    calls: float
    steps_progress: np.ndarray | None = None


def check_request(model: Model, steps: Sequence[Steps], num: int, length: int) -> None:
    """Refuses impossible requests before anything is compiled."""
    require(bool(steps), "got no step counts; expected for example --steps=1,4.")
    for count in steps:
        require(
            isinstance(count, Share) or count >= 1,
            f"got steps={count}; expected at least 1 network call.",
        )
    require(num >= 1, f"got num_samples={num}; expected at least 1.")
    require(
        1 <= length <= model.net.max_length,
        f"got length={length}; expected 1 to {model.net.max_length} tokens, those this model was "
        "trained for.",
    )


def step_counts(model: Model, steps: Sequence[Steps], length: int) -> list[Steps]:
    """Returns the requested step counts, or [L] for autoregressive models."""
    return list(steps) if family(model.config).steps_free else [length]


def given_tokens(
    model: Model, prompt: str, infill: str, num: int, length: int, chat: bool = False
) -> Given:
    """Returns the prescribed positions of a prompt or an infill template, for `num` equal rows.

    See `prompts.lay_out`; the positions after it are free.

    Raises:
      UserError: both are given, nothing is free, or there are more tokens than `length`.
    """
    require(not (prompt and infill), "got both --prompt and --infill; expected one of them.")
    if not (prompt or infill):
        return nothing_given(num, length)
    row = lay_out(model, [Prompt(prompt, infill)], length, chat=chat, whole=True).given
    return jax.tree.map(lambda x: jnp.asarray(np.tile(x, (num, 1))), row)


def check_given(
    model: Model, given: Given, steps: Steps, sampler: SamplerConfig | None = None
) -> None:
    """Refuses rows with fewer network calls than blocks, and guidance by prompts without any."""
    cfg = _sampler(model, sampler)
    require(
        unprompted(cfg) is cfg or bool(np.asarray(given.mask).any()),
        f"got guidance by weak_prompt={getattr(cfg, 'weak_prompt', '')} and no given tokens; "
        "expected a prompt or an infill, or guidance=1.",
    )
    check_calls(model.net, given, steps, getattr(cfg, "block_length", 0))


def unprompted(sampler: SamplerConfig) -> SamplerConfig:
    """Returns the settings for rows without given tokens: guidance by them is left out."""
    if isinstance(sampler, GuidedConfig) and sampler.by_prompt:
        return dataclasses.replace(sampler, guidance=1.0)
    return sampler


def _sampler(model: Model, sampler: SamplerConfig | None) -> SamplerConfig:
    return model_sampler(model.config) if sampler is None else sampler


def _program(
    model: Model, steps: Steps, sampler: SamplerConfig | None, given: Given | None = None
) -> tuple[Any, dict]:
    """Returns jitted (key, params, given, extra) -> Samples in `steps` steps, and `extra`.

    Rows of `given`, if any, are checked first.
    """
    cfg = _sampler(model, sampler)
    if given is not None:
        check_given(model, given, steps, cfg)
    guides, extra = load_guides(model, cfg)
    made = make_sampler(model.config, model.net, model.flow, steps, cfg, guides)
    return jax.jit(made), extra


def prepare(
    model: Model, shape: tuple[int, ...], steps: Steps, sampler: SamplerConfig | None = None
) -> Callable[..., Draw]:
    """Compiles a sampler for batches of one shape.

    Args:
      shape: (B, L), rows and tokens of a batch.
      steps: step count of the sampler.
      sampler: settings of a sampler of the model; None for the model's own, config.sampler.

    Returns:
      run(given, *, num, seed, show) -> Draw, which is `draw` without its compilation; `given` has
      the shape `shape`.

    Raises:
      UserError: a sampler that does not fit the model or the steps.
    """
    rows, length = shape
    root, example = jax.random.key(0), nothing_given(rows, length)
    program, extra = _program(model, steps, sampler)
    compiled = program.lower(root, model.params, example, extra).compile()

    def run(
        given: Given, *, num: int, seed: int, show: Callable[[int], None] = lambda done: None
    ) -> Draw:
        root, parts = jax.random.key(check_seed(seed)), []
        given = jax.tree.map(jnp.asarray, given)
        began = time.perf_counter()

        def one(batch: int) -> Samples:
            key = jax.random.fold_in(root, batch)
            return jax.device_get(compiled(key, model.params, given, extra))

        for batch, part in enumerate(in_turn(range(-(-num // rows)), one, model.shared)):
            parts.append(part)
            show(min(num, (batch + 1) * rows))
        # Rows that only fill up the last batch are not counted.
        seconds = (time.perf_counter() - began) * num / (len(parts) * rows)
        return _joined(parts, num, seconds)

    return run


def _joined(parts: list[Samples], num: int, seconds: float) -> Draw:
    """Joins batches, cut to the first `num` rows."""
    tokens = np.concatenate([p.tokens for p in parts])[:num]
    path = lambda name: np.concatenate([getattr(p, name) for p in parts], axis=1)[:, :num]
    progress = None if parts[0].steps_progress is None else path("steps_progress")
    paths = path("steps_tokens"), path("steps_confidence")
    return Draw(tokens, *paths, seconds, float(np.mean([_calls(p) for p in parts])), progress)


def draw(
    model: Model,
    given: Given,
    *,
    steps: Steps,
    num: int,
    seed: int,
    sampler: SamplerConfig | None = None,
    show: Callable[[int], None] = lambda done: None,
) -> Draw:
    """Draws `num` samples in full batches of given.tokens.shape[0] rows.

    Every batch has the same shape, so that one program is compiled; sample i depends on the seed
    and the batch size alone, and two step counts start from the same noise.

    Args:
      given: prescribed tokens of one batch, arrays [B, L].
      sampler: settings of a sampler of the model; None for the model's own, config.sampler.
      show: callback that takes the number of samples done, after each batch.

    Raises:
      UserError: a sampler that does not fit the model or the steps.
    """
    check_given(model, given, steps, sampler)
    run = prepare(model, given.tokens.shape, steps, sampler)
    return run(given, num=num, seed=seed, show=show)


class Completed(NamedTuple):
    """Completed rows.

    Attributes:
      places: int [N], indices of these rows among the rows to complete.
      tokens: int32 [N, L].
      calls: number of network calls for a batch, averaged over batches.
    """

    places: np.ndarray
    tokens: np.ndarray
    calls: float


def completions(
    model: Model,
    given: Given,
    *,
    steps: Steps,
    batch_size: int,
    seed: int,
    sampler: SamplerConfig | None = None,
    wanted: Callable[[int], bool] = lambda place: True,
) -> Iterator[Completed]:
    """Completes each row of `given`, in batches of one shape.

    Row i depends on the seed, the batch size and its own batch alone; with temperature 0, or a
    sampler that draws nothing, masked diffusion completes each row independently of the others. A
    last batch that is not full is filled with the first rows again: a sampler that stops early does
    so when all rows are done.

    Args:
      given: tokens and the mask of prescribed positions, [N, L], as from `Task.problems` or
        `lay_out`.
      steps, seed, sampler: the same as for `draw`.
      batch_size: number of rows at a time.
      wanted: function from the index of a row to whether it is wanted; a batch without wanted rows
        is skipped.

    Yields:
      The wanted rows of a batch, and its number of network calls.
    """
    num = given.tokens.shape[0]
    rows = min(batch_size, num)
    program, extra = _program(model, steps, sampler, given)
    root, batches = jax.random.key(check_seed(seed)), []
    for batch in range(-(-num // rows)):
        places = np.arange(batch * rows, (batch + 1) * rows)
        asked = np.array([place < num and wanted(int(place)) for place in places])
        if asked.any():
            batches.append((batch, places, asked))

    def one(item: tuple[int, np.ndarray, np.ndarray]) -> Samples:
        batch, places, _ = item
        some = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[places % num]), given)
        key = jax.random.fold_in(root, batch)
        return jax.device_get(program(key, model.params, some, extra))

    for (_, places, asked), found in zip(batches, in_turn(batches, one, model.shared)):
        yield Completed(places[asked], np.asarray(found.tokens)[asked], _calls(found))


def complete(
    model: Model, given: Given, show: Callable[[int], None] = lambda done: None, **settings: Any
) -> Completed:
    """Returns all of `completions` at once; `show` takes the number of rows done so far."""
    parts: list[Completed] = []
    for part in completions(model, given, **settings):
        parts.append(part)
        show(sum(len(one.places) for one in parts))
    places, tokens = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return Completed(places, tokens, float(np.mean([part.calls for part in parts])))


def _calls(found: Samples) -> int:
    return len(found.steps_tokens) if found.calls is None else int(found.calls)


def trajectory(model: Model, drawn: Draw) -> Iterator[dict]:
    """Yields a record for each sample and step: tokens, text and confidence of each position.

    A record also has the progress of each position where positions differ in it. An autoregressive
    model has one record for each sample, after its last call.
    """
    kept = drawn.steps_tokens.shape[0]
    each = max(1, round(drawn.calls / kept))  # more where guidance asks more networks
    for i in range(drawn.tokens.shape[0]):
        for k in range(kept):
            row = drawn.steps_tokens[k, i]
            record = {
                "sample": i,
                "call": each * (k + 1),
                "text": model.tokenizer.decode(row),
                "tokens": row.tolist(),
                "confidence": np.round(drawn.steps_confidence[k, i], 4).tolist(),
            }
            if drawn.steps_progress is not None:
                record["progress"] = np.round(drawn.steps_progress[k, i], 4).tolist()
            yield record
