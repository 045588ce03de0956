"""Bigrams of a corpus: how much more probable a token is after another one than by itself.

    r(b | a) = log( max(n_ab - d, 0) / (n_a p(b)) + lambda_a ),    p(b) = n_b / N,

with absolute discounting (Ney, Essen and Kneser 1994): d = n_1 / (n_1 + 2 n_2) from the numbers of
pairs seen once and twice, and lambda_a the mass that the pairs of `a` leave. Pairs rarer than
`least` leave all of theirs, which keeps the file small. A pair that is not kept has log lambda_a.
"""

import functools
import os
from typing import NamedTuple

import numpy as np
from etils import epath
from safetensors import safe_open
from safetensors.numpy import save

from flm_jax.core.errors import require
from flm_jax.core.files import write_whole
from flm_jax.core.paths import expanded
from flm_jax.core.reading import named_damage, require_plain
from flm_jax.data.corpus.manifest import MANIFEST
from flm_jax.data.corpus.store import TokenStream, load_prepared

BIGRAMS = "bigrams.safetensors"
# Tokens that are counted: all of a small corpus, and of a large one its beginning.
MOST_TOKENS = 100_000_000
_LEAST = 2
_PIECE = 1 << 24  # tokens counted at a time, which bounds the memory


class Bigrams(NamedTuple):
    """The kept pairs of V tokens, sorted by their first token and then by their second.

    Attributes:
      starts: int32 [V + 1], place of the first pair of each token.
      nexts: int32 [n], second tokens of the pairs.
      ratios: float32 [n], r(b | a) of the pairs, in nats.
      backoff: float32 [V], r(b | a) of all other pairs of each first token, in nats.
    """

    starts: np.ndarray
    nexts: np.ndarray
    ratios: np.ndarray
    backoff: np.ndarray


def _counted(stream: TokenStream, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (a V + b), sorted, and their counts, int64."""
    codes, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    total = min(len(stream), MOST_TOKENS)
    for start in range(0, total, _PIECE):
        # One token more than the piece, so that no pair is lost between two pieces.
        tokens = stream.read(start, min(start + _PIECE + 1, total)).astype(np.int64)
        found, number = np.unique(tokens[:-1] * vocab_size + tokens[1:], return_counts=True)
        codes, places = np.unique(np.concatenate([codes, found]), return_inverse=True)
        counts = np.bincount(places, weights=np.concatenate([counts, number])).astype(np.int64)
    return codes, counts


def count_bigrams(stream: TokenStream, vocab_size: int, least: int = _LEAST) -> Bigrams:
    """Counts the pairs of tokens that follow each other in a corpus, document after document.

    Args:
      stream: training tokens, each document with its EOS; `MOST_TOKENS` are read.
      vocab_size: number V of tokens.
      least: number of times that a pair is seen at the least to be kept.

    Raises:
      UserError: a corpus without two tokens.
    """
    codes, counts = _counted(stream, vocab_size)
    require(codes.size > 0, "the corpus has no two tokens in a row; expected texts to count pairs.")
    first, second = np.divmod(codes, vocab_size)
    before = np.bincount(first, counts, vocab_size)
    share = np.bincount(second, counts, vocab_size) / counts.sum()
    once, twice = (np.sum(counts == number) for number in (1, 2))
    discount = once / max(once + 2 * twice, 1)
    kept = counts >= least
    first, second, counts = first[kept], second[kept], counts[kept]
    mass = np.maximum(counts - discount, 0.0) / before[first]
    left = np.where(before > 0, 1.0 - np.bincount(first, mass, vocab_size), 1.0)
    # What is left of a token that is always followed by the same ones is 0 up to rounding.
    left = np.maximum(left, 1e-6)
    starts = np.searchsorted(first, np.arange(vocab_size + 1))
    ratios = np.log(mass / share[second] + left[first])
    as_int, as_float = (lambda x: x.astype(np.int32)), (lambda x: x.astype(np.float32))
    return Bigrams(as_int(starts), as_int(second), as_float(ratios), as_float(np.log(left)))


def save_bigrams(folder: str | os.PathLike[str], bigrams: Bigrams, fingerprint: str) -> None:
    """Writes `bigrams.safetensors` in a folder: ratios in float16, ids as narrow as they can be.

    Args:
      fingerprint: fingerprint of the tokenizer whose tokens were counted.
    """
    narrow = np.uint16 if bigrams.backoff.size <= 1 << 16 else np.int32
    tensors = bigrams._asdict() | {
        "nexts": bigrams.nexts.astype(narrow),
        "ratios": bigrams.ratios.astype(np.float16),
    }
    write_whole(
        epath.Path(expanded(str(folder))) / BIGRAMS, save(tensors, {"tokenizer": fingerprint})
    )


def _read(path: epath.Path) -> tuple[Bigrams, str]:
    """Bigrams of a file, and the fingerprint of their tokenizer."""
    require_plain(path, "bigrams")
    with named_damage(path), safe_open(str(path), framework="numpy") as file:
        found = {name: file.get_tensor(name) for name in Bigrams._fields}
        fingerprint = (file.metadata() or {}).get("tokenizer", "")
    kinds = dict(zip(Bigrams._fields, (np.int32, np.int32, np.float32, np.float32)))
    bigrams = Bigrams(**{name: x.astype(kinds[name]) for name, x in found.items()})
    starts, pairs, tokens = bigrams.starts, bigrams.nexts.size, bigrams.backoff.size
    require(
        starts.shape == (tokens + 1,)
        and bigrams.nexts.shape == bigrams.ratios.shape == (pairs,)
        and starts[0] == 0
        and starts[-1] == pairs
        and bool(np.all(np.diff(starts) >= 0)),
        f"{path} holds no table of bigrams; expected one that this library wrote.",
    )
    return bigrams, fingerprint


@functools.lru_cache(maxsize=2)
def _of_prepared(folder: str) -> tuple[Bigrams, str]:
    """Bigrams of prepared data, and the fingerprint of their tokenizer.

    They are counted once: each step count and each row of a table opens them again.
    """
    prepared = load_prepared(folder)
    vocab_size = prepared.tokenizer.vocab_size
    return count_bigrams(prepared.split("train"), vocab_size), prepared.tokenizer.fingerprint


def load_bigrams(path: str | os.PathLike[str], fingerprint: str) -> Bigrams:
    """Opens the bigrams in a folder, or counts the pairs of prepared data.

    Args:
      path: folder with a file `bigrams.safetensors`, or of prepared data.
      fingerprint: fingerprint of the tokenizer of the model that is to use them.

    Raises:
      UserError: neither is there, the file is damaged, or the tokens are of another tokenizer.
    """
    folder = epath.Path(path)
    if (folder / BIGRAMS).exists():
        bigrams, own = _read(folder / BIGRAMS)
    else:
        require(
            (folder / MANIFEST).exists(),
            f"bigrams={path} has no {BIGRAMS} and is no prepared data; expected the folder of one "
            "of them.",
        )
        bigrams, own = _of_prepared(str(folder))
    require(
        own == fingerprint,
        f"bigrams={path} were counted with another tokenizer than the model's; expected tokens of "
        "the model's own.",
    )
    return bigrams
