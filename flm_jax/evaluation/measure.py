"""Samples a trained model and measures the quality of its samples, as rows of tables."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from flm_jax.build.data import framing, open_data
from flm_jax.build.families.registry import family
from flm_jax.build.load import Model, load_model
from flm_jax.build.sampler import model_sampler
from flm_jax.core.errors import require
from flm_jax.core.progress import tracked
from flm_jax.core.types import Config
from flm_jax.data import loading
from flm_jax.data.pipeline import Batch, Source, eval_batches
from flm_jax.evaluation.features import Featurizer
from flm_jax.evaluation.sample_files import Kept
from flm_jax.evaluation.tables import Row, with_interval
from flm_jax.evaluation.wording import Wording
from flm_jax.inference import engine
from flm_jax.metrics.denoising import tau_profile
from flm_jax.metrics.generative_perplexity import Judge, judge_samples, perplexity, text_of
from flm_jax.metrics.intervals import interval, share_interval
from flm_jax.metrics.likelihood import Likelihood, likelihood
from flm_jax.metrics.mauve import mauve
from flm_jax.metrics.prompt_following import prompt_following
from flm_jax.metrics.text import diversity_report, row_entropies, unigram_entropy
from flm_jax.samplers.base import Given, SamplerConfig, nothing_given

_HELD_OUT = 512  # sequences that samples are compared with
_PROBLEMS, _PROBLEM_SEED = 1000, 11  # most of them for each row
_NO_DATA = {"path": "", "mixture": (), "chat": (), "task": "", "generated": ""}
_FEATURE_ROWS = 32  # texts whose features are computed at a time
_LIKELIHOOD_ROWS = 256  # sequences at most for the likelihood, with 16 draws each


def losses(model: Model, data: loading.Data, batch_size: int) -> Row:
    """Losses on held-out data, nats/token; none for outputs that are no probability distribution.

    Returns:
      nll_nats_per_token with the 95% interval of its estimate, and `likelihood`: "exact", or "upper
      bound" (the NELBO of masked diffusion, `metrics.flow_likelihood` of flows). For flows also
      denoising_nats_per_token, the cross entropy over the clock of training, which is no
      likelihood.
    """
    kind, parts = family(model.config), (model.config, model.net, model.flow)
    most = max(1, _LIKELIHOOD_ROWS // batch_size)
    batches = lambda: held_out_batches(data.valid, batch_size, most)
    row = {}
    if kind.row_likelihood(*parts) is not None:
        row |= nll_figures(model, corpus_likelihood(model, batches()))
    row_nll = None if kind.row_nll is kind.row_likelihood else kind.row_nll(*parts)
    if row_nll is not None:
        profile = tau_profile(jax.jit(row_nll), model.params, batches(), 0, jax.random.key(1))
        row["denoising_nats_per_token"] = profile["nll_nats_per_token"]
    return row


def held_out_batches(source: Source, batch_size: int, most: int | None = None) -> Iterator[Batch]:
    """Returns the batches of `eval_batches`, `most` of them at most, with their progress shown."""
    batches = eval_batches(source, batch_size, max_batches=most)
    total = -(-len(source) // batch_size)
    total = total if most is None else min(total, most)
    return tracked(batches, "held-out batches", total, quiet=jax.process_index() > 0)


def corpus_likelihood(model: Model, batches: Iterable[dict]) -> Likelihood:
    """Negative log-likelihood of batches of `eval_batches`, or a bound on it."""
    kind = family(model.config)
    row = kind.row_likelihood(model.config, model.net, model.flow)
    how = {"draws": kind.draws, "share": model.shared}
    return likelihood(jax.jit(row), model.params, batches, **how)


def nll_figures(model: Model, found: Likelihood) -> Row:
    """Formats a likelihood as columns of a table."""
    half = 1.96 * found.standard_error
    return {
        "likelihood": family(model.config).likelihood,
        "nll_nats_per_token": found.nats_per_token,
        "nll_nats_per_token_low": found.nats_per_token - half,
        "nll_nats_per_token_high": found.nats_per_token + half,
    }


class Subject(NamedTuple):
    """A model with the data and the judge against which its samples are measured.

    Attributes:
      model: loaded model.
      data: data of training, or other data with the same tokenizer; None for a folder without data.
      reference: held-out sequences [M, L]; M = 0 without data.
      judge: judge of the samples, or None.
      features: function from texts to features for MAUVE, or None.
      reference_features: features of the reference [M, D], or None.
    """

    model: Model
    data: loading.Data | None
    reference: np.ndarray
    judge: Judge | None
    features: Featurizer | None = None
    reference_features: np.ndarray | None = None


def subject(
    workdir: str,
    judge: Judge | None = None,
    data: str = "",
    features: Featurizer | None = None,
) -> Subject:
    """Opens a trained model with its data.

    Args:
      workdir: workdir of the model, or an exported folder, which has no data.
      judge: judge of samples; None for no generative perplexity.
      data: folder of `prepare_data` that replaces the model's own data.
      features: function from texts to features for MAUVE; None for no MAUVE.

    Raises:
      UserError: no such model or data, or data of another tokenizer.
    """
    model = load_model(workdir, shared=True)
    config = model.config | {"data": model.config["data"] | _NO_DATA | {"path": data}}
    config = config if data else model.config
    if not any(config["data"].get(key) for key in _NO_DATA):
        return Subject(model, None, np.zeros((0, model.net.max_length), np.int32), judge)
    found = open_data(config)
    own, other = (x.tokenizer.fingerprint[:12] for x in (model, found))
    require(
        own == other,
        f"{workdir}: the data {config['data']['path']} has another tokenizer ({other}) than the "
        f"model ({own}); restore it, or give --data=FOLDER that prepare_data wrote with "
        f"--tokenizer={workdir}/tokenizer.",
    )
    what = Subject(model, found, _held_out(found, slice(_reference_size(found))), judge)
    if features is None:
        return what
    held = _reference_features(features, tuple(_texts(what, what.reference)))
    return what._replace(features=features, reference_features=held)


# Models of one table share their held-out texts.
@functools.lru_cache(maxsize=1)
def _reference_features(features: Featurizer, texts: tuple[str, ...]) -> np.ndarray:
    return features(texts, _FEATURE_ROWS)


def measure(
    workdir: str,
    steps: Sequence[int],
    *,
    samples: int,
    batch_size: int,
    seed: int,
    choose: Callable[[Config], SamplerConfig] = model_sampler,
    judge: Judge | None = None,
    data: str = "",
    wording: Wording | None = None,
    kept: Kept | None = None,
    features: Featurizer | None = None,
    show: Callable[[int], None] = lambda done: None,
    prompted: int = 0,
) -> Iterator[Row]:
    """Yields one table row per step count.

    Args:
      workdir: workdir of a trained model, whose data must still be available. An exported folder
        has no data, and figures that need held-out data are then left out.
      steps: step counts; a model without a choice of steps is sampled once.
      samples: number of samples for each row.
      batch_size: number of samples, or validation rows, at a time.
      seed: seed of the random draws.
      choose: function from the model's configuration to its sampler.
      judge: judge of the samples; None for no generative perplexity.
      data: folder of `prepare_data` that replaces the model's own data.
      wording: figures of the samples' texts.
      kept: collection to which the samples are added.
      features: function from texts to features for MAUVE; None for no MAUVE.
      show: callback that takes the number of samples of all rows, after each batch.
      prompted: number of first tokens of held-out texts to continue, for `prompt_following`; 0 for
        none.

    Yields:
      Numbers (NAME_low and NAME_high bound the interval of NAME) and "samples", texts.

    Raises:
      UserError: no such model, other data, impossible numbers; before the first row.
    """
    what = subject(workdir, judge, data, features)
    model, length = what.model, what.model.net.max_length
    sampler = choose(model.config)
    engine.check_request(model, steps, samples, length)
    require(
        prompted < length,
        f"got --prompted={prompted}; expected at least 1 and less than {length}, the model's "
        "length.",
    )
    nats = losses(model, what.data, batch_size) if what.data else {}
    if what.data:
        nats = {"data_entropy_nats": unigram_entropy(what.reference[:256])} | nats
    problems = what.data and what.data.task and what.data.task.has_problems
    alone = engine.unprompted(sampler) if prompted or problems else sampler
    how = {"samples": samples, "batch_size": batch_size, "seed": seed, "sampler": alone}
    for count, drawn, row in drawn_rows(workdir, model, steps, kept=kept, show=show, **how):
        texts = [model.tokenizer.decode(one) for one in drawn.tokens]
        yield {
            **row,
            **figures(what, drawn.tokens, batch_size),
            **(wording.figures(texts) if wording else {}),
            **completions(what, count, min(samples, _PROBLEMS), batch_size, seed, sampler),
            **continued(what, count, prompted, samples, batch_size, seed, sampler),
            **nats,
            "samples": texts,
        }


def drawn_rows(
    workdir: str,
    model: Model,
    steps: Sequence[int],
    *,
    samples: int,
    batch_size: int,
    seed: int,
    sampler: SamplerConfig,
    kept: Kept | None = None,
    show: Callable[[int], None] = lambda done: None,
) -> Iterator[tuple[int, engine.Draw, Row]]:
    """Yields the step count, the samples, and figures of how they were drawn, for each row.

    Arguments are as in `measure`; a model without a choice of steps is sampled once.
    """
    length = model.net.max_length
    given = nothing_given(min(batch_size, samples), length)
    how = {"num": samples, "seed": seed, "sampler": sampler}
    for number, count in enumerate(engine.step_counts(model, steps, length)):
        shown = lambda done, before=number * samples: show(before + done)
        drawn = engine.draw(model, given, steps=count, show=shown, **how)
        if kept:
            kept.add(workdir, drawn.calls, drawn.tokens, model.tokenizer)
        row = {
            "model": workdir,
            "kind": family(model.config).kind(model.net),
            "calls": drawn.calls,
            "seconds_per_1000_tokens": 1000.0 * drawn.seconds / drawn.tokens.size,
        }
        yield count, drawn, row


def measure_data(
    what: Subject,
    samples: int,
    batch_size: int,
    wording: Wording | None = None,
    prompted: int = 0,
) -> Row:
    """Measures held-out data instead of samples, for the figures of a perfect model.

    It uses up to `samples` sequences, none of which is in the reference.
    """
    left = max(len(what.data.valid) - _reference_size(what.data), 1)
    tokens = _held_out(what.data, slice(-min(left, samples), None))
    texts = [what.model.tokenizer.decode(row) for row in tokens]
    return {
        "model": "data",
        "kind": f"{len(tokens)} held-out sequences",
        **figures(what, tokens, batch_size),
        **(wording.figures(texts) if wording else {}),
        **_gain(what, tokens, prompted, batch_size),
        "data_entropy_nats": unigram_entropy(what.reference[:256]),
        "samples": texts[:64],
    }


def figures(what: Subject, tokens: np.ndarray, batch_size: int) -> Row:
    """Quality and diversity of sequences [N, L]; perplexity always comes with the entropy."""
    row = {}
    if what.judge:
        own = what.model.tokenizer, framing(what.model.config)
        judged = judge_samples(what.judge, tokens, *own, batch_size)
        row |= with_interval("judge_perplexity", perplexity(judged))
    if what.features:
        drawn = what.features(_texts(what, tokens), _FEATURE_ROWS)
        row |= with_interval("mauve", mauve(drawn, what.reference_features))
    row |= diversity_report(tokens, what.reference)
    if task := what.data and what.data.task:
        row |= {f"task_{k}": v for k, v in task.report(tokens).items()}
        row["task_valid_low"], row["task_valid_high"] = share_interval(
            row["task_valid"], len(tokens)
        )
    return row


def _texts(what: Subject, tokens: np.ndarray) -> list[str]:
    own = what.model.tokenizer, framing(what.model.config)
    return [text_of(row, *own) for row in tokens]


def completions(
    what: Subject, steps: int, count: int, batch_size: int, seed: int, sampler: SamplerConfig | None
) -> Row:
    """Fraction of the model's task problems that it completes correctly; {} if there are none.

    Every family can have clean prescribed tokens, but an autoregressive model does not see those
    after the position that it generates: it gets only problems that begin with all prescribed
    tokens, such as sums. A flow that was trained without prescribed tokens keeps them on their own
    path from noise.

    Returns:
      problem_KEY for each figure of `Task.report_problems`; problem_solved with its 95% interval;
      problem_calls, the number of network calls for a batch.
    """
    task, model = what.data and what.data.task, what.model
    if task is None or not task.has_problems:
        return {}
    tokens, given = task.problems(count, _PROBLEM_SEED)
    # A prefix: no position is given behind one that is not.
    if not family(model.config).sees_ahead and (np.diff(given.astype(int), axis=1) > 0).any():
        return {}
    settings = dict(steps=steps, batch_size=batch_size, seed=seed, sampler=sampler)
    done = engine.complete(model, Given(tokens, given), **settings)
    row = {f"problem_{k}": v for k, v in task.report_problems(done.tokens, tokens, given).items()}
    low, high = share_interval(row["problem_solved"], count)
    return row | {
        "problem_solved_low": low,
        "problem_solved_high": high,
        "problem_calls": done.calls,
    }


def continued(
    what: Subject,
    steps: int,
    prompted: int,
    samples: int,
    batch_size: int,
    seed: int,
    sampler: SamplerConfig | None,
) -> Row:
    """Measures the model's continuations of the beginnings of held-out texts.

    Args:
      what: model, its data and the judge.
      steps: number of steps of a batch.
      prompted: number of tokens of each beginning; 0 for no such figure.
      samples: maximum number of held-out texts.
      batch_size: number of texts at a time.
      seed: seed of the random draws.
      sampler: sampler and its settings; None for the model's own.

    Returns:
      Figures of `prompt_following` and continuation_entropy_nats, the entropy of the continuations,
      with their intervals; {} without a judge or data, or if `prompted` is 0.
    """
    if not (prompted and what.judge and what.data):
        return {}
    tokens = what.reference[:samples]
    given = np.zeros(tokens.shape, bool)
    given[:, :prompted] = True
    settings = dict(steps=steps, batch_size=batch_size, seed=seed, sampler=sampler)
    done = engine.complete(what.model, Given(tokens, given), **settings)
    return _gain(what, done.tokens[np.argsort(done.places)], prompted, batch_size)


def _gain(what: Subject, tokens: np.ndarray, prompted: int, batch_size: int) -> Row:
    if not (prompted and what.judge):
        return {}
    halves = tokens[:, :prompted], tokens[:, prompted:]
    texts = [[what.model.tokenizer.decode(row) for row in half] for half in halves]
    found = prompt_following(what.judge, *texts, batch_size)
    found["continuation_entropy_nats"] = interval(np.mean, row_entropies(halves[1]))
    return {k: v for name, one in found.items() for k, v in with_interval(name, one).items()}


def _reference_size(data: loading.Data) -> int:
    """Size of the reference; if there are few held-out sequences, half are for `measure_data`."""
    return max(1, min(_HELD_OUT, len(data.valid) // 2))


def _held_out(data: loading.Data, places: slice) -> np.ndarray:
    """Held-out sequences in a fixed random order, since neighbours belong to one document."""
    order = np.random.default_rng(0).permutation(len(data.valid))[places]
    return np.stack([data.valid[int(i)]["tokens"] for i in order])
