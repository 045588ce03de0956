"""Trigrams of a corpus: how much more probable a token is after two others than after the last one.

    r(c | a, b) = log( max(n_abc - d, 0) / (n_ab q(c | b)) + lambda_ab ),

as the ratios of `data.bigrams`, of which q(c | b) = p(c) exp(r(c | b)) are: the discount d is that
of all triples, and lambda_ab the mass that the kept triples of a, b leave. A triple that is not
kept has log lambda_ab, which is 0 after a pair without any: bigrams alone count there.
"""

import os
from typing import NamedTuple

import numpy as np
from etils import epath

from flm_jax.core.errors import require
from flm_jax.data.bigrams import (
    Bigrams,
    bigrams_of,
    counted,
    narrow,
    opened,
    read_table,
    rising,
    token_shares,
    write_table,
)
from flm_jax.data.corpus.store import TokenStream

TRIGRAMS = "trigrams.safetensors"
_LEAST = 3


class Trigrams(NamedTuple):
    """The kept triples of V tokens, sorted, by the m pairs with which they begin, sorted too.

    Attributes:
      starts: int32 [V + 1], place of the first pair of each token.
      seconds: int32 [m], second tokens of the pairs.
      places: int32 [m + 1], place of the first triple of each pair.
      nexts: int32 [n], third tokens of the triples.
      ratios: float32 [n], r(c | a, b) of the triples, in nats.
      backoff: float32 [m], r(c | a, b) of all other triples of each pair, in nats.
    """

    starts: np.ndarray
    seconds: np.ndarray
    places: np.ndarray
    nexts: np.ndarray
    ratios: np.ndarray
    backoff: np.ndarray


def _ratios(bigrams: Bigrams, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Log ratios r(after | before) of pairs [n], in nats."""
    size = bigrams.backoff.size
    codes = np.repeat(np.arange(size), np.diff(bigrams.starts)) * size + bigrams.nexts
    if not codes.size:
        return bigrams.backoff[before]
    wanted = before * size + after
    spots = np.minimum(np.searchsorted(codes, wanted), codes.size - 1)
    return np.where(codes[spots] == wanted, bigrams.ratios[spots], bigrams.backoff[before])


def count_trigrams(stream: TokenStream, vocab_size: int, least: int = _LEAST) -> Trigrams:
    """Counts the triples of tokens that follow each other in a corpus, document after document.

    Args:
      stream: training tokens, each document with its EOS; as many are read as for bigrams.
      vocab_size: number V of tokens.
      least: number of times that a triple is seen at the least to be kept.

    Raises:
      UserError: a corpus without two tokens.
    """
    pairs, triples = (counted(stream, vocab_size, order) for order in (2, 3))
    bigrams, share = bigrams_of(pairs, vocab_size), token_shares(pairs, vocab_size)
    # How often a token follows a pair: once less than it is seen, at the end of the corpus.
    behind, number = np.unique(triples.codes // vocab_size, return_inverse=True)
    total = np.bincount(number, triples.counts, behind.size)
    codes, counts = triples.at_least(least)
    before, third = np.divmod(codes, vocab_size)
    kept, place = np.unique(before, return_inverse=True)
    first, second = np.divmod(kept, vocab_size)
    mass = np.maximum(counts - triples.discount(), 0.0)
    mass /= total[np.searchsorted(behind, kept)][place]
    left = np.maximum(1.0 - np.bincount(place, mass, kept.size), 1e-6)
    expected = share[third] * np.exp(_ratios(bigrams, second[place], third))
    as_int, as_float = (lambda x: x.astype(np.int32)), (lambda x: x.astype(np.float32))
    return Trigrams(
        as_int(np.searchsorted(first, np.arange(vocab_size + 1))),
        as_int(second),
        as_int(np.searchsorted(place, np.arange(kept.size + 1))),
        as_int(third),
        as_float(np.log(mass / expected + left[place])),
        as_float(np.log(left)),
    )


def save_trigrams(folder: str | os.PathLike[str], trigrams: Trigrams, fingerprint: str) -> None:
    """Writes `trigrams.safetensors` in a folder: ratios in float16, ids as narrow as they can be.

    Args:
      fingerprint: fingerprint of the tokenizer whose tokens were counted.
    """
    size = trigrams.starts.size - 1
    tensors = {
        "starts": trigrams.starts,
        "seconds": narrow(trigrams.seconds, size),
        # Each kept pair has a triple: one less fits where ids do.
        "more": narrow(np.diff(trigrams.places) - 1, size),
        "nexts": narrow(trigrams.nexts, size),
        "ratios": trigrams.ratios.astype(np.float16),
        "backoff": trigrams.backoff.astype(np.float16),
    }
    write_table(folder, TRIGRAMS, tensors, fingerprint)


def _read(path: epath.Path) -> tuple[Trigrams, str]:
    """Trigrams of a file, and the fingerprint of their tokenizer."""
    names = ("starts", "seconds", "more", "nexts", "ratios", "backoff")
    found, fingerprint = read_table(path, "trigrams", names)
    starts, seconds, more, nexts = (found[name].astype(np.int32) for name in names[:4])
    ratios, backoff = (found[name].astype(np.float32) for name in names[4:])
    places = np.concatenate([[0], np.cumsum(more + 1)]).astype(np.int32)
    require(
        rising(starts, starts.size - 1, seconds.size)
        and rising(places, seconds.size, nexts.size)
        and seconds.shape == backoff.shape
        and nexts.shape == ratios.shape,
        f"{path} holds no table of trigrams; expected one that this library wrote.",
    )
    return Trigrams(starts, seconds, places, nexts, ratios, backoff), fingerprint


def load_trigrams(path: str | os.PathLike[str], fingerprint: str) -> Trigrams:
    """Opens the trigrams in a folder, or counts the triples of prepared data.

    Args:
      path: folder with a file `trigrams.safetensors`, or of prepared data.
      fingerprint: fingerprint of the tokenizer of the model that is to use them.

    Raises:
      UserError: neither is there, the file is damaged, or the tokens are of another tokenizer.
    """
    return opened(path, TRIGRAMS, fingerprint, _read, count_trigrams)
