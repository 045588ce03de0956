"""Tokens of one network call chosen together, by the bigrams of the training texts.

One call gives each position its own distribution p_i; tokens taken from them one by one need not
go together ("the the", halves of two words). Here they are taken from

    p(x) ~ prod_i p_i(x_i) prod_i (q(x_i | x_{i-1}) / q(x_i))^w,

the second product over neighbours that are both to be written: p_i of a token beside a known one
knows it already. q are the bigrams of `data.bigrams`; no other network call is made. At temperature
0 the tokens are the most probable ones under p among the K most probable of each position, by the
algorithm of Viterbi. Else K tokens of each position are drawn from p_i, and one of them by
filtering forwards and sampling backwards with the links, and the part of the temperature that is
not in the draws: exact as K grows (sampling-importance resampling), and no token is cut off.

Linear chains over the outputs of a parallel decoder: Sun et al., arXiv 1910.11555, who learn the
links. Marginals corrected by a model of their dependence: arXiv 2410.01949.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.settings import setting
from flm_jax.core.types import Key
from flm_jax.data.bigrams import Bigrams
from flm_jax.samplers.base import Given
from flm_jax.samplers.categorical import Choice, DrawnConfig, gumbel


@dataclasses.dataclass(frozen=True)
class BigramConfig(DrawnConfig):
    """Settings of samplers that can choose the tokens of a call together."""

    bigram: float = setting(
        0.0,
        "Weight of the bigrams by which the tokens of a network call are chosen together; 0 to "
        "choose each by itself.",
        range="[0, inf)",
    )
    bigrams: str = setting(
        "",
        "Folder of prepared data whose bigrams are counted, or of a model that has them; by "
        "default the model's own.",
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
    """

    bigrams: Bigrams
    weight: float
    candidates: int


class Candidates(NamedTuple):
    """Candidates of each position: tokens, their scores, and their log-probabilities [B, L, K].

    Scores are log-probabilities up to a constant, of draws without the law that they were drawn
    from; -inf for none.
    """

    tokens: Int[Array, "b l k"]
    scores: Float[Array, "b l k"]
    logs: Float[Array, "b l k"]


def with_chain(choice: Choice, cfg: BigramConfig, bigrams: Bigrams | None) -> Choice:
    """Returns the rule of a sampler's settings, joined by bigrams if their weight is not 0."""
    if not cfg.bigram:
        return choice
    return dataclasses.replace(choice, chain=Chain(bigrams, cfg.bigram, cfg.bigram_candidates))


def log_ratio(bigrams: Bigrams, before: jax.Array, after: jax.Array) -> Float[Array, "*b"]:
    """Returns log q(after | before) / q(after), float32, by bisection in the pairs of `before`."""
    low, end = bigrams.starts[before], bigrams.starts[before + 1]
    last = bigrams.nexts.shape[0] - 1
    if last < 0:
        return bigrams.backoff[before]
    low, end, after = jnp.broadcast_arrays(low, end, after)
    high = end
    # A token has at most V pairs, so that so many halvings leave one place.
    for _ in range(bigrams.backoff.shape[0].bit_length()):
        middle = (low + high) // 2
        less = (low < high) & (bigrams.nexts[jnp.minimum(middle, last)] < after)
        low, high = jnp.where(less, middle + 1, low), jnp.where(less, high, middle)
    place = jnp.minimum(low, last)
    found = (low < end) & (bigrams.nexts[place] == after)
    return jnp.where(found, bigrams.ratios[place], bigrams.backoff[before])


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
    bigrams, weight, _ = choice.chain
    drawn = choice.temperature > 0.0
    weight = weight / choice.temperature if drawn else weight
    by_place = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), candidates)
    tokens, scores, _ = by_place
    free = jnp.moveaxis(~given.mask, 1, 0)
    weights = weight * (free[:-1] & free[1:])[..., None, None]
    links = lambda a, b, weight: weight * log_ratio(bigrams, a[:, :, None], b[:, None, :])
    most = jax.nn.logsumexp if drawn else jnp.max

    def forwards(best, now):
        before, own, score, weight = now
        best = most(best[:, :, None] + links(before, own, weight), axis=1) + score
        return best, best

    moves = (tokens[:-1], tokens[1:], scores[1:], weights)
    _, rest = jax.lax.scan(forwards, scores[0], moves)
    best = jnp.concatenate([scores[:1], rest])
    if drawn:
        # Apart from the keys of the draws, which are folded with positions.
        best = best + gumbel(jax.random.fold_in(key, best.shape[0]), best.shape)

    def backwards(after, now):
        own, score, weight = now
        taken = jnp.argmax(score + links(own, after, weight)[:, :, 0], axis=1)[:, None]
        return jnp.take_along_axis(own, taken, axis=1), taken[:, 0]

    last = jnp.argmax(best[-1], axis=1)[:, None]
    after = jnp.take_along_axis(tokens[-1], last, axis=1)
    _, places = jax.lax.scan(backwards, after, (tokens[:-1], best[:-1], weights), reverse=True)
    places = jnp.moveaxis(jnp.concatenate([places, last.T]), 0, 1)[..., None]
    picked = lambda x: jnp.take_along_axis(x, places, axis=-1)[..., 0]
    return picked(candidates.tokens), jnp.exp(picked(candidates.logs))
