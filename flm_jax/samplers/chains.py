"""Paths through the candidates of a row's positions, under scores, links of two and of three.

The algorithm of Viterbi for the best path; forwards filtering and backwards sampling for a drawn
one. Positions come first in all arrays.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.types import Key
from flm_jax.samplers.categorical import gumbel


class Links(NamedTuple):
    """Links of neighbouring tokens.

    Attributes:
      value: function from tokens, which are broadcast, to the log of their link.
      weights: weight of the link that ends at each position from the first that has one,
        [L - 1, B] for pairs, [L - 2, B] for triples.
    """

    value: Callable[..., jax.Array]
    weights: Float[Array, "l b"]


def _noise(key: Key, number: int, shape: tuple[int, ...], drawn: bool) -> jax.Array:
    """Gumbel noise that makes a draw of a maximum; zeros for the maximum itself.

    The keys of the candidates are folded with positions: `number` is no position.
    """
    return gumbel(jax.random.fold_in(key, number), shape) if drawn else jnp.zeros(shape)


def _most(drawn: bool) -> Callable[..., jax.Array]:
    return jax.nn.logsumexp if drawn else jnp.max


def path_of_pairs(
    key: Key,
    tokens: Int[Array, "l b k"],
    scores: Float[Array, "l b k"],
    pairs: Links,
    drawn: bool,
) -> Int[Array, "l b"]:
    """Returns the best or a drawn path under scores and links of two.

    Args:
      key: key of the draw.
      tokens, scores: candidates of each position, and their scores.
      pairs: links of two.
      drawn: whether a path is drawn in proportion to the exponent of its sum; else the best one is
        taken.

    Returns:
      The place of each position's token among its candidates.
    """
    most = _most(drawn)

    def link(before, after, weight):
        value = pairs.value(before[:, :, None], after[:, None, :])
        return weight[:, None, None] * value

    def forwards(best, now):
        before, own, score, weight = now
        best = most(best[:, :, None] + link(before, own, weight), axis=1) + score
        return best, best

    moves = (tokens[:-1], tokens[1:], scores[1:], pairs.weights)
    _, rest = jax.lax.scan(forwards, scores[0], moves)
    best = jnp.concatenate([scores[:1], rest])
    best = best + _noise(key, len(tokens), best.shape, drawn)

    def backwards(after, now):
        own, score, weight = now
        taken = jnp.argmax(score + link(own, after, weight)[:, :, 0], axis=1)[:, None]
        return jnp.take_along_axis(own, taken, axis=1), taken[:, 0]

    last = jnp.argmax(best[-1], axis=1)
    after = jnp.take_along_axis(tokens[-1], last[:, None], axis=1)
    now = (tokens[:-1], best[:-1], pairs.weights)
    _, places = jax.lax.scan(backwards, after, now, reverse=True)
    return jnp.concatenate([places, last[None]])


def path_of_triples(
    key: Key,
    tokens: Int[Array, "l b k"],
    scores: Float[Array, "l b k"],
    pairs: Links,
    triples: Links,
    drawn: bool,
) -> Int[Array, "l b"]:
    """Returns the best or a drawn path under scores, links of two and links of three.

    A state of the chain is a pair of neighbours: time and memory grow with the cube of K.

    Args:
      key, tokens, scores, pairs, drawn: the same as for `path_of_pairs`; L is 3 at the least.
      triples: links of three.

    Returns:
      The place of each position's token among its candidates.
    """
    most, number = _most(drawn), tokens.shape[-1]

    def into(before, own, score, weight):
        """What a pair of neighbours adds with its second token, [B, K, K]."""
        value = pairs.value(before[:, :, None], own[:, None, :])
        return score[:, None, :] + weight[:, None, None] * value

    def forwards(best, now):
        first, second, own, added, weight = now
        value = triples.value(first[:, :, None, None], second[:, None, :, None], own[:, None, None])
        both = best[..., None] + weight[:, None, None, None] * value
        best = most(both, axis=1) + into(second, own, *added)
        return best, best

    start = scores[0][:, :, None] + into(tokens[0], tokens[1], scores[1], pairs.weights[0])
    added = (scores[2:], pairs.weights[1:])
    moves = (tokens[:-2], tokens[1:-1], tokens[2:], added, triples.weights)
    end, rest = jax.lax.scan(forwards, start, moves)
    best = jnp.concatenate([start[None], rest[:-1]])
    length = len(tokens)
    noise = _noise(key, length, tokens[2:].shape, drawn)
    own = lambda tokens, place: jnp.take_along_axis(tokens, place[:, None], axis=1)

    def backwards(taken, now):
        # The places of the two tokens behind `first`; `best` is over first and second.
        second_place, third_place = taken
        first, second, third, score, weight, noise = now
        value = triples.value(first, own(second, second_place), own(third, third_place))
        score = jnp.take_along_axis(score, second_place[:, None, None], axis=2)[..., 0]
        place = jnp.argmax(score + weight[:, None] * value + noise, axis=1)
        return (place, second_place), place

    end = end + _noise(key, length + 1, end.shape, drawn)
    last = jnp.divmod(jnp.argmax(end.reshape(end.shape[0], -1), axis=1), number)
    now = (*moves[:3], best, triples.weights, noise)
    _, places = jax.lax.scan(backwards, last, now, reverse=True)
    return jnp.concatenate([places, jnp.stack(last)])
