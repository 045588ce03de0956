"""Likelihood of a prepared corpus under a trained model (zero-shot perplexity)."""

import math

from flm_jax.build.data import framing
from flm_jax.build.families.registry import family
from flm_jax.build.load import load_model
from flm_jax.config.schema import settings
from flm_jax.core.errors import require
from flm_jax.data.corpus.store import load_prepared
from flm_jax.data.packing import PackedSource
from flm_jax.evaluation.measure import corpus_likelihood, held_out_batches, nll_figures
from flm_jax.evaluation.tables import Row
from flm_jax.metrics.likelihood import Likelihood


def corpus_row(workdir: str, corpus: str, *, split: str, sequences: int, batch_size: int) -> Row:
    """Zero-shot perplexity: exact for autoregressive models, else from an upper bound.

    The corpus is cut like the model's own training data (length, packing), so that a sequence is
    scored without the text before it.

    Args:
      workdir: workdir of the model.
      corpus: folder written by prepare_data with the model's tokenizer.
      split: split of the corpus, such as "valid".
      sequences: number of first sequences, in full batches; 0 for all.
      batch_size: number of sequences at a time.

    Returns:
      nll_nats_per_token and perplexity with their 95% intervals over sequences, `likelihood` (see
      `measure.losses`), and, if documents are not cut off (packing wrap or stream), bits_per_byte
      of UTF-8, by the mean bytes of a token of the complete split: only this figure is comparable
      between tokenizers.

    Raises:
      UserError: no such model or corpus, another tokenizer, a model without likelihood.
    """
    require(sequences >= 0, f"got corpus_sequences={sequences}; expected 0 (all) or more.")
    require(batch_size >= 1, f"got batch_size={batch_size}; expected at least 1.")
    model, prepared = load_model(workdir, shared=True), load_prepared(corpus)
    own, other = model.tokenizer.fingerprint, prepared.tokenizer.fingerprint
    require(
        own == other,
        f"corpus {corpus} has another tokenizer ({other[:12]}) than {workdir} ({own[:12]}); "
        f"prepare it anew with prepare_data --tokenizer={workdir}/tokenizer.",
    )
    kind = family(model.config)
    require(
        kind.row_likelihood(model.config, model.net, model.flow) is not None,
        f"{workdir} has no likelihood: its output is no distribution.",
    )
    stream, packing = prepared.split(split), framing(model.config)
    group = settings(model.config, "data").group
    source = PackedSource(stream, model.tokenizer, model.net.max_length, packing, group)
    most = -(-sequences // batch_size) if sequences else None
    found = corpus_likelihood(model, held_out_batches(source, batch_size, most))
    row = {
        "model": workdir,
        "kind": kind.kind(model.net),
        "corpus": corpus,
        "sequences": found.sequences,
        **nll_figures(model, found),
    }
    for end in ("", "_low", "_high"):
        row[f"perplexity{end}"] = math.exp(row[f"nll_nats_per_token{end}"])
    if packing != "pad":
        bytes_per_token = stream.counts["bytes"] / stream.counts["tokens"]
        row["bits_per_byte"] = _bits(found, packing, model.net.max_length) / bytes_per_token
    return row


def _bits(found: Likelihood, packing: str, length: int) -> float:
    """Bits per token of the corpus, which the two framing tokens of "wrap" do not belong to."""
    block = length - 2 if packing == "wrap" else length
    return found.nats_per_token * found.tokens / (found.sequences * block) / math.log(2)
