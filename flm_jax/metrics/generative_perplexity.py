"""Generative perplexity: the likelihood of samples under an autoregressive judge.

It is exp(sum of -ln p_judge / number of judged tokens) over all samples. It rewards repetition, so
it is meaningless without the entropy of the same samples (arXiv 2409.02908), and it is comparable
between models under the same judge alone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.progress import tracked
from flm_jax.core.types import Params
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.losses.autoregressive import next_token_loss
from flm_jax.metrics.intervals import Interval, interval


class Judge(NamedTuple):
    """An autoregressive model that scores texts.

    Attributes:
      name: name for reports.
      net, params: causal network and its parameters; features at position l see the tokens before
        l.
      tokenizer: tokenizer of the judge.
      framing: format of its training examples: "stream" (tokens alone), "wrap" (BOS, tokens, EOS)
        or "pad" (BOS, one document, EOS, padding).
      first_counts: whether the distribution of a first token without BOS is learnt; else it is not
        scored.
    """

    name: str
    net: Network
    params: Params
    tokenizer: Tokenizer
    framing: str
    first_counts: bool

    @property
    def head(self) -> list[int]:
        """Token ids before a text."""
        return [] if self.framing == "stream" else [self.tokenizer.bos_id]


class Window(NamedTuple):
    """Tokens that the judge sees at once, with the mask of scored ones and the sample's row."""

    row: int
    tokens: np.ndarray
    scored: np.ndarray


def text_of(tokens: np.ndarray, tokenizer: Tokenizer, framing: str) -> str:
    """Text of a sample, up to its first EOS if examples are padded documents."""
    if framing == "pad" and tokenizer.eos_id is not None:
        ends = np.flatnonzero(tokens[1:] == tokenizer.eos_id)
        tokens = tokens[: 1 + ends[0]] if len(ends) else tokens
    return tokenizer.decode(tokens)


def judge_samples(
    judge: Judge, tokens: np.ndarray, tokenizer: Tokenizer, framing: str, batch_size: int = 32
) -> np.ndarray:
    """Scores samples by the judge.

    Samples of the judge's own tokenizer and framing are scored token by token, except tokens that
    frame every example in the same way (BOS, and the EOS at the end of "wrap"). Others are decoded
    and encoded again by the judge's tokenizer; texts longer than the judge's length are cut into
    windows, and each later window is scored without the text before it.

    Args:
      judge: judge of the samples.
      tokens: samples, int [N, L].
      tokenizer, framing: tokenizer and framing of the model that generated them.
      batch_size: number of windows at a time.

    Returns:
      float64 [N, 2]: nats, -ln p summed over the judged tokens of each sample, and their number.
    """
    tokens = np.asarray(tokens)
    same = judge.framing == framing and judge.tokenizer.fingerprint == tokenizer.fingerprint
    if same and tokens.shape[1] <= judge.net.max_length:
        windows = [Window(i, row, _scored(judge, row)) for i, row in enumerate(tokens)]
    else:
        texts = [text_of(row, tokenizer, framing) for row in tokens]
        windows = list(_windows(judge, texts))
    return scores(judge, windows, len(tokens), batch_size)


def judge_texts(judge: Judge, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
    """Scores texts from elsewhere, as `judge_samples` scores decoded samples."""
    return scores(judge, list(_windows(judge, texts)), len(texts), batch_size)


def scores(judge: Judge, windows: Sequence[Window], rows: int, batch_size: int) -> np.ndarray:
    """Nats of the scored tokens of each row's windows, and their number, float64 [rows, 2]."""
    out = np.zeros((rows, 2))
    for window, nats in zip(windows, _nats(judge, windows, batch_size)):
        length = len(window.tokens)
        out[window.row] += nats[:length] @ window.scored, window.scored.sum()
    return out


def perplexity(judged: np.ndarray, seed: int = 0) -> Interval:
    """Perplexity of samples with its 95% bootstrap interval over them.

    Args:
      judged: result of `judge_samples`, [N, 2].
      seed: seed of the bootstrap.
    """
    require(
        judged[:, 1].sum() > 0,
        "no token of the samples can be judged: their texts are empty.",
    )

    def statistic(rows):
        nats, count = rows.sum(axis=0)
        # Resampled rows may be empty texts alone; 709 is where float64 ends.
        return float(np.exp(min(nats / max(count, 1.0), 709.0)))

    return interval(statistic, judged, seed=seed)


def _scored(judge: Judge, row: np.ndarray) -> np.ndarray:
    """Mask of the tokens of an example in the judge's own framing that are scored."""
    scored = np.ones(len(row), bool)
    if judge.framing == "stream":
        scored[0] = judge.first_counts
        return scored
    scored[0] = False
    if judge.framing == "wrap":
        scored[-1] = False
    else:
        ends = np.flatnonzero(row[1:] == judge.tokenizer.eos_id)
        scored[2 + ends[0] if len(ends) else len(row) :] = False
    return scored


def _windows(judge: Judge, texts: Sequence[str]):
    before = judge.head
    size = judge.net.max_length - len(before)
    for i, ids in enumerate(judge.tokenizer.encode_batch(texts)):
        for start in range(0, len(ids), size):
            row = np.concatenate([before, ids[start : start + size]]).astype(np.int32)
            scored = np.ones(len(row), bool)
            scored[0] = not before and judge.first_counts
            yield Window(i, row, scored)


def _nats(judge: Judge, windows: Sequence[Window], batch_size: int):
    """Values -ln p of every token of each window, float32 [its width or more], by batch."""
    if not windows:
        return
    program = _program(judge.net)
    # One width, so that one program is compiled; a causal network does not see what follows.
    width = max(len(window.tokens) for window in windows)
    starts = range(0, len(windows), batch_size)
    for start in tracked(starts, "judge: batches", len(starts), quiet=jax.process_index() > 0):
        some = windows[start : start + batch_size]
        tokens = np.zeros((batch_size, width), np.int32)
        for place, window in enumerate(some):
            tokens[place, : len(window.tokens)] = window.tokens
        yield from np.asarray(program(judge.params, tokens), np.float64)[: len(some)]


def _program(net: Network) -> Callable[[Params, np.ndarray], jax.Array]:
    def nll(params, tokens):
        weights = jnp.ones(tokens.shape, jnp.float32)
        return next_token_loss(params, tokens, weights, net=net)[1]

    return jax.jit(nll)
