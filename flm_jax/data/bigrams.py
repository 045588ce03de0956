"""Bigrams of a corpus: how much more probable a token is after another one than by itself.

    r(b | a) = log( max(n_ab - d, 0) / (n_a p(b)) + lambda_a ),    p(b) = n_b / N,

with absolute discounting (Ney, Essen and Kneser 1994): d = n_1 / (n_1 + 2 n_2) from the numbers of
pairs seen once and twice, and lambda_a the mass that the pairs of `a` leave. Pairs rarer than
`least` leave all of theirs, which keeps the file small. A pair that is not kept has log lambda_a.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

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

T = TypeVar("T")
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


class Counts(NamedTuple):
    """The runs of `order` tokens of a corpus: their codes in base V, sorted, and how often each is.

    Attributes:
      codes: int64 [n].
      counts: int64 [n].
    """

    codes: np.ndarray
    counts: np.ndarray

    def discount(self) -> float:
        """Absolute discount n_1 / (n_1 + 2 n_2), which is subtracted from each count."""
        once, twice = (np.sum(self.counts == number) for number in (1, 2))
        return float(once / max(once + 2 * twice, 1))

    def at_least(self, least: int) -> "Counts":
        """Returns the runs that are seen so often."""
        kept = self.counts >= least
        return Counts(self.codes[kept], self.counts[kept])


def counted(stream: TokenStream, vocab_size: int, order: int) -> Counts:
    """Counts the runs of `order` tokens of a corpus, of which `MOST_TOKENS` are read."""
    codes, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    total = min(len(stream), MOST_TOKENS)
    for start in range(0, total, _PIECE):
        # Some tokens more than the piece, so that no run is lost between two pieces.
        tokens = stream.read(start, min(start + _PIECE + order - 1, total)).astype(np.int64)
        number = max(tokens.size - order + 1, 0)
        runs = np.zeros(number, np.int64)
        for offset in range(order):
            runs = runs * vocab_size + tokens[offset : offset + number]
        found, number = np.unique(runs, return_counts=True)
        codes, places = np.unique(np.concatenate([codes, found]), return_inverse=True)
        counts = np.bincount(places, weights=np.concatenate([counts, number])).astype(np.int64)
    return Counts(codes, counts)


def token_shares(pairs: Counts, vocab_size: int) -> np.ndarray:
    """Probabilities p(b) of the second tokens of all pairs, float64 [V]."""
    return np.bincount(pairs.codes % vocab_size, pairs.counts, vocab_size) / pairs.counts.sum()


def count_bigrams(stream: TokenStream, vocab_size: int, least: int = _LEAST) -> Bigrams:
    """Counts the pairs of tokens that follow each other in a corpus, document after document.

    Args:
      stream: training tokens, each document with its EOS; `MOST_TOKENS` are read.
      vocab_size: number V of tokens.
      least: number of times that a pair is seen at the least to be kept.

    Raises:
      UserError: a corpus without two tokens.
    """
    return bigrams_of(counted(stream, vocab_size, 2), vocab_size, least)


def bigrams_of(pairs: Counts, vocab_size: int, least: int = _LEAST) -> Bigrams:
    """Returns the bigrams of counted pairs; see `count_bigrams`."""
    require(
        pairs.codes.size > 0,
        "the corpus has no two tokens in a row; expected texts to count pairs.",
    )
    before = np.bincount(pairs.codes // vocab_size, pairs.counts, vocab_size)
    share, discount = token_shares(pairs, vocab_size), pairs.discount()
    codes, counts = pairs.at_least(least)
    first, second = np.divmod(codes, vocab_size)
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
    tensors = bigrams._asdict() | {
        "nexts": narrow(bigrams.nexts, bigrams.backoff.size),
        "ratios": bigrams.ratios.astype(np.float16),
    }
    write_table(folder, BIGRAMS, tensors, fingerprint)


def narrow(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns numbers up to V - 1 in 16 bits, if they fit."""
    return ids.astype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def write_table(
    folder: str | os.PathLike[str], name: str, tensors: dict[str, np.ndarray], fingerprint: str
) -> None:
    """Writes a table of counts and the fingerprint of its tokenizer as a file of a folder."""
    place = epath.Path(expanded(str(folder))) / name
    write_whole(place, save(tensors, {"tokenizer": fingerprint}))


def read_table(
    path: epath.Path, what: str, names: Sequence[str]
) -> tuple[dict[str, np.ndarray], str]:
    """Reads the tensors of a table, and the fingerprint of its tokenizer.

    Args:
      path: file of the table.
      what: name of the contents, for errors.
      names: names of the tensors.

    Raises:
      UserError: a damaged file, or one without these tensors.
    """
    require_plain(path, what)
    with named_damage(path), safe_open(str(path), framework="numpy") as file:
        found = {name: file.get_tensor(name) for name in names}
        return found, (file.metadata() or {}).get("tokenizer", "")


def rising(starts: np.ndarray, rows: int, places: int) -> bool:
    """Whether `starts` [rows + 1] divides `places` places among rows, in their order."""
    return (
        starts.shape == (rows + 1,)
        and starts[0] == 0
        and starts[-1] == places
        and bool(np.all(np.diff(starts) >= 0))
    )


def _read(path: epath.Path) -> tuple[Bigrams, str]:
    """Bigrams of a file, and the fingerprint of their tokenizer."""
    found, fingerprint = read_table(path, "bigrams", Bigrams._fields)
    kinds = dict(zip(Bigrams._fields, (np.int32, np.int32, np.float32, np.float32)))
    bigrams = Bigrams(**{name: x.astype(kinds[name]) for name, x in found.items()})
    pairs = bigrams.nexts.size
    require(
        rising(bigrams.starts, bigrams.backoff.size, pairs)
        and bigrams.nexts.shape == bigrams.ratios.shape == (pairs,),
        f"{path} holds no table of bigrams; expected one that this library wrote.",
    )
    return bigrams, fingerprint


@functools.lru_cache(maxsize=4)
def _of_prepared(folder: str, count: Callable[[TokenStream, int], T]) -> tuple[T, str]:
    """Table of prepared data, and the fingerprint of its tokenizer.

    It is counted once: each step count and each row of a table opens it again.
    """
    prepared = load_prepared(folder)
    vocab_size = prepared.tokenizer.vocab_size
    return count(prepared.split("train"), vocab_size), prepared.tokenizer.fingerprint


def load_bigrams(path: str | os.PathLike[str], fingerprint: str) -> Bigrams:
    """Opens the bigrams in a folder, or counts the pairs of prepared data.

    Args:
      path: folder with a file `bigrams.safetensors`, or of prepared data.
      fingerprint: fingerprint of the tokenizer of the model that is to use them.

    Raises:
      UserError: neither is there, the file is damaged, or the tokens are of another tokenizer.
    """
    return opened(path, BIGRAMS, fingerprint, _read, count_bigrams)


def opened(
    path: str | os.PathLike[str],
    name: str,
    fingerprint: str,
    read: Callable[[epath.Path], tuple[T, str]],
    count: Callable[[TokenStream, int], T],
) -> T:
    """Opens the table `name` of a folder, or counts that of prepared data; see `load_bigrams`."""
    folder = epath.Path(path)
    if (folder / name).exists():
        table, own = read(folder / name)
    else:
        require(
            (folder / MANIFEST).exists(),
            f"bigrams={path} has no {name} and is no prepared data; expected the folder of one of "
            "them.",
        )
        table, own = _of_prepared(str(folder), count)
    require(
        own == fingerprint,
        f"bigrams={path} were counted with another tokenizer than the model's; expected tokens of "
        "the model's own.",
    )
    return table
