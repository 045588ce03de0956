"""Table rows under the reference's protocol, and rows of samples from files."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from flm_jax.build.load import load_model
from flm_jax.build.sampler import model_sampler
from flm_jax.core.errors import require
from flm_jax.core.types import Config
from flm_jax.evaluation.measure import drawn_rows
from flm_jax.evaluation.sample_files import Kept, SampleSet
from flm_jax.evaluation.tables import Row, with_interval
from flm_jax.inference import engine
from flm_jax.metrics.generative_perplexity import Judge, judge_texts, perplexity
from flm_jax.metrics.intervals import interval
from flm_jax.metrics.reference_perplexity import judge_as_reference
from flm_jax.metrics.text import row_entropies
from flm_jax.samplers.base import SamplerConfig

PROTOCOLS = ("library", "reference")
FROM_FILE = "samples of a file"  # the kind of a row


def reference_rows(
    workdir: str,
    steps: Sequence[int],
    *,
    samples: int,
    batch_size: int,
    seed: int,
    judge: Judge,
    choose: Callable[[Config], SamplerConfig] = model_sampler,
    kept: Kept | None = None,
    show: Callable[[int], None] = lambda done: None,
) -> Iterator[Row]:
    """Yields one row per step count under the protocol of the published tables.

    Args:
      workdir: workdir of a trained or imported model, or an exported folder.
      steps: step counts; a model without a choice of steps is sampled once.
      samples: number of samples for each row.
      batch_size: number of samples drawn at a time.
      seed: seed of the random draws.
      judge: judge, a GPT-2.
      choose: function from the model's configuration to its sampler.
      kept: collection to which the samples are added.
      show: callback that takes the number of samples of all rows, after each batch.

    Yields:
      The figures of `reference_figures`, with model, kind, calls, seconds and texts.

    Raises:
      UserError: no such model, impossible numbers, another judge.
    """
    model = load_model(workdir)
    length, sampler = model.net.max_length, choose(model.config)
    engine.check_request(model, steps, samples, length)
    how = {"samples": samples, "batch_size": batch_size, "seed": seed, "sampler": sampler}
    for _, drawn, row in drawn_rows(workdir, model, steps, kept=kept, show=show, **how):
        texts = [model.tokenizer.decode_whole(one) for one in drawn.tokens]
        figures = reference_figures(judge, texts, drawn.tokens, length)
        yield {**row, **figures, "samples": texts}


def reference_figures(
    judge: Judge, texts: Sequence[str], tokens: Sequence[np.ndarray], length: int
) -> Row:
    """Perplexity and entropy of samples, computed as in the reference.

    Args:
      judge: judge, a GPT-2.
      texts: texts with their special tokens written out.
      tokens: tokens of each text, by the model's tokenizer.
      length: length of the model's sequences in tokens, to which the judge's are cut.

    Returns:
      generative_perplexity and entropy_nats with their 95% intervals; judged_texts and
      judged_tokens, the numbers on which they are based.
    """
    judged = judge_as_reference(judge, texts, length)
    row = with_interval("generative_perplexity", perplexity(judged))
    row |= with_interval("entropy_nats", interval(np.mean, row_entropies(tokens)))
    return row | {"judged_texts": len(judged), "judged_tokens": int(judged[:, 1].sum())}


def file_row(found: SampleSet, protocol: str, judge: Judge, length: int = 0) -> Row:
    """Returns the row of samples that come from a file.

    Args:
      found: samples. If their tokens are unknown, the entropy is that of the judge's tokens, which
        the row states.
      protocol: one of `PROTOCOLS`.
      judge: judge of the samples.
      length: length of the model's sequences in tokens; 0 for the length of the longest.

    Raises:
      UserError: the reference's protocol without a length.
    """
    tokens = found.tokens or judge.tokenizer.encode_whole(found.texts)
    row: Row = {"model": found.model, "kind": FROM_FILE}
    row |= {} if found.calls is None else {"calls": found.calls}
    if protocol == "reference":
        length = length or found.length
        require(
            length > 0,
            f"samples of {found.model} have no tokens that tell the model's length; give it: "
            "--length=1024.",
        )
        row |= reference_figures(judge, found.texts, tokens, length)
    else:
        # Without special tokens, which are no text to a judge.
        ids = judge.tokenizer.encode_whole(found.texts)
        judged = judge_texts(judge, [judge.tokenizer.decode(one) for one in ids])
        row |= with_interval("judge_perplexity", perplexity(judged))
        row |= with_interval("entropy_nats", interval(np.mean, row_entropies(tokens)))
    row["entropy_of"] = "tokens" if found.tokens else "judge's tokens"
    return row | {"samples": found.texts}
