"""Tokens of one network call chosen together, by the bigrams and trigrams of the training texts.

One call gives each position its own distribution p_i; tokens taken from them one by one need not
go together ("the the", halves of two words). Here they are taken from

    p(x) ~ prod_i p_i(x_i) prod_i (q(x_i | x_{i-1}) / q(x_i))^w
                           prod_i (q(x_i | x_{i-2}, x_{i-1}) / q(x_i | x_{i-1}))^v,

the second product over neighbours that are both to be written, the third over three in a row: p_i
of a token beside a known one knows it already. q are the bigrams of `data.bigrams` and the trigrams
of `data.trigrams`; no other network call is made. At temperature 0 the tokens are the most probable
ones under p among the K most probable of each position, by the algorithm of Viterbi. Else K tokens
of each position are drawn from p_i, and one of them by filtering forwards and sampling backwards
with the links, and the part of the temperature that is not in the draws: exact as K grows
(sampling-importance resampling), and no token is cut off.

Linear chains over the outputs of a parallel decoder: Sun et al., arXiv 1910.11555, who learn the
links. Marginals corrected by a model of their dependence: arXiv 2410.01949.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.settings import setting
from flm_jax.core.types import Key
from flm_jax.data.bigrams import Bigrams
from flm_jax.data.trigrams import Trigrams
from flm_jax.samplers.base import Given
from flm_jax.samplers.categorical import Choice, DrawnConfig
from flm_jax.samplers.chains import Links, path_of_pairs, path_of_triples


@dataclasses.dataclass(frozen=True)
class BigramConfig(DrawnConfig):
    """Settings of samplers that can choose the tokens of a call together."""

    bigram: float = setting(
        0.0,
        "Weight of the bigrams by which the tokens of a network call are chosen together; 0 to "
        "choose each by itself.",
        range="[0, inf)",
    )
    trigram: float = setting(
        0.0,
        "Weight of what trigrams know beyond bigrams; 0 for bigrams alone. Without effect where "
        "bigram is 0.",
        range="[0, inf)",
    )
    bigrams: str = setting(
        "",
        "Folder of prepared data whose bigrams and trigrams are counted, or of a model that has "
        "them; by default the model's own.",
    )
    bigram_candidates: int = setting(
        24,
        "Number of candidates of each position: its most probable tokens, or as many draws at a "
        "temperature above 0.",
        range="[2, inf)",
    )


class Chain(NamedTuple):
    """What joins the tokens of neighbouring positions.

    Attributes:
      bigrams: table of pairs, as arrays of JAX.
      weight: exponent w of the bigrams.
      candidates: number K of candidates of each position.
      trigrams: table of triples, as arrays of JAX; None for bigrams alone.
      trigram_weight: exponent v of the trigrams.
    """

    bigrams: Bigrams
    weight: float
    candidates: int
    trigrams: Trigrams | None = None
    trigram_weight: float = 0.0


class Candidates(NamedTuple):
    """Candidates of each position: tokens, their scores, and their log-probabilities [B, L, K].

    Scores are log-probabilities up to a constant, of draws without the law that they were drawn
    from; -inf for none.
    """

    tokens: Int[Array, "b l k"]
    scores: Float[Array, "b l k"]
    logs: Float[Array, "b l k"]


def with_chain(choice: Choice, cfg: BigramConfig, extra: Mapping[str, Any]) -> Choice:
    """Returns the rule of a sampler's settings, joined by a chain if the bigrams' weight is not 0.

    Args:
      choice: rule of the single tokens.
      cfg: weights and number of candidates.
      extra: tables under "bigrams" and, if `cfg` gives them a weight, "trigrams".
    """
    if not cfg.bigram:
        return choice
    chain = Chain(extra["bigrams"], cfg.bigram, cfg.bigram_candidates)
    if cfg.trigram:
        chain = chain._replace(trigrams=extra["trigrams"], trigram_weight=cfg.trigram)
    return dataclasses.replace(choice, chain=chain)


def _place(
    values: Int[Array, "n"], low: jax.Array, end: jax.Array, wanted: jax.Array, most: int
) -> tuple[Int[Array, "*b"], jax.Array]:
    """Finds numbers in rising parts of an array, by bisection.

    Args:
      values: the array; not empty.
      low, end: place of the first number of each part, and the place after its last.
      wanted: numbers to be found.
      most: length of the longest part that there can be.

    Returns:
      A place of each, and whether the number stands there.
    """
    low, end, wanted = jnp.broadcast_arrays(low, end, wanted)
    last = values.shape[0] - 1
    for power in reversed(range(most.bit_length())):
        # All before `low` are less than the number; so are those before `far`, if its last is.
        far = low + (1 << power)
        less = (far <= end) & (values[jnp.minimum(far - 1, last)] < wanted)
        low = jnp.where(less, far, low)
    place = jnp.minimum(low, last)
    return place, (low < end) & (values[place] == wanted)


def log_ratio(bigrams: Bigrams, before: jax.Array, after: jax.Array) -> Float[Array, "*b"]:
    """Returns log q(after | before) / q(after), float32."""
    if not bigrams.nexts.shape[0]:
        return jnp.broadcast_arrays(bigrams.backoff[before], after)[0]
    part = bigrams.starts[before], bigrams.starts[before + 1]
    place, found = _place(bigrams.nexts, *part, after, bigrams.backoff.shape[0])
    return jnp.where(found, bigrams.ratios[place], bigrams.backoff[before])


def log_gain(
    trigrams: Trigrams, first: jax.Array, second: jax.Array, third: jax.Array
) -> Float[Array, "*b"]:
    """Returns log q(third | first, second) / q(third | second), float32.

    `first` and `second` are looked up once for all of `third`, with which they are broadcast.
    """
    shape = jnp.broadcast_shapes(first.shape, second.shape, third.shape)
    if not trigrams.nexts.shape[0]:
        return jnp.zeros(shape)
    size = trigrams.starts.shape[0] - 1
    part = trigrams.starts[first], trigrams.starts[first + 1]
    pair, known = _place(trigrams.seconds, *part, second, size)
    low = trigrams.places[pair]
    # Behind a pair that has no triples there is nothing to be found.
    end = jnp.where(known, trigrams.places[pair + 1], low)
    place, found = _place(trigrams.nexts, low, end, third, size)
    others = jnp.where(known, trigrams.backoff[pair], 0.0)
    return jnp.where(found, trigrams.ratios[place], others)


def _draws(key: Key, scores: Float[Array, "b v"], number: int) -> Int[Array, "b k"]:
    """Draws from softmax(scores) with replacement, by the inverse of the distribution function."""
    sums = jnp.cumsum(jax.nn.softmax(scores, axis=-1), axis=-1)
    spots = jax.random.uniform(key, (scores.shape[0], number)) * sums[:, -1:]
    find = jax.vmap(lambda row, spot: jnp.searchsorted(row, spot, side="right"))
    # A spot at the end, which rounding allows, is of the last token that has a probability.
    last = jnp.argmax(sums, axis=-1)[:, None]
    return jnp.minimum(find(sums, spots), last)


def candidates_of(
    key: Key, positions: Int[Array, "t"], logits: Float[Array, "b t v"], choice: Choice
) -> Candidates:
    """Returns the candidates of some positions, with one key for each so that tiles do not matter.

    Args:
      key: key of the draws; not used at temperature 0.
      positions: places of the logits in their rows.
      logits: logits, up to a constant.
      choice: temperature, top-p and chain.
    """
    number, temperature = choice.chain.candidates, choice.temperature
    if temperature > 0.0:
        # Draws at a low temperature are all alike: they are taken at 1, and weighted.
        drawn_at = max(temperature, 1.0)
        allowed = jnp.isfinite(choice.scores(logits))
        wide = jnp.where(allowed, logits / drawn_at, -jnp.inf)
        power = 1.0 / temperature - 1.0 / drawn_at

        def one(position, scores):
            return _draws(jax.random.fold_in(key, position), scores, number)

        tokens = jax.vmap(one, in_axes=(0, 1), out_axes=1)(positions, wide)
    else:
        power = 1.0
        tokens = jax.lax.top_k(logits, min(number, logits.shape[-1]))[1]
    tokens = tokens.astype(jnp.int32)
    logs = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens, axis=-1)
    return Candidates(tokens, power * logs, logs)


def _held(candidates: Candidates, given: Given) -> Candidates:
    """Leaves prescribed positions one candidate, the prescribed token."""
    mask = given.mask[..., None]
    one = jnp.where(jnp.arange(candidates.tokens.shape[-1]) == 0, 0.0, -jnp.inf)
    return Candidates(
        jnp.where(mask, given.tokens[..., None], candidates.tokens),
        jnp.where(mask, one, candidates.scores),
        jnp.where(mask, 0.0, candidates.logs),
    )


def choose_together(
    key: Key, candidates: Candidates, choice: Choice, given: Given
) -> tuple[Int[Array, "b l"], Float[Array, "b l"]]:
    """Chooses the tokens of all positions by the chain; see the module.

    Args:
      key: key of the draws; not used at temperature 0.
      candidates: candidates of each position.
      choice: temperature and chain. The links are divided by the temperature too.
      given: prescribed tokens, which are kept; nothing links them to their neighbours.

    Returns:
      Tokens, and the network's own probability of each, 1 where prescribed.
    """
    candidates = _held(candidates, given)
    chain, drawn = choice.chain, choice.temperature > 0.0
    sharper = 1.0 / choice.temperature if drawn else 1.0
    tokens, scores, _ = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), candidates)
    free = jnp.moveaxis(~given.mask, 1, 0)
    two = free[:-1] & free[1:]
    pairs = Links(
        lambda a, b: log_ratio(chain.bigrams, a, b),
        chain.weight * sharper * two,
    )
    if chain.trigrams is None or len(tokens) < 3:
        places = path_of_pairs(key, tokens, scores, pairs, drawn)
    else:
        triples = Links(
            lambda a, b, c: log_gain(chain.trigrams, a, b, c),
            chain.trigram_weight * sharper * (two[:-1] & two[1:]),
        )
        places = path_of_triples(key, tokens, scores, pairs, triples, drawn)
    places = jnp.moveaxis(places, 0, 1)[..., None]
    picked = lambda x: jnp.take_along_axis(x, places, axis=-1)[..., 0]
    return picked(candidates.tokens), jnp.exp(picked(candidates.logs))
